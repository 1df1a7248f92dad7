"""Batches: the same for any number of ranks and workers, from any position on, every sample once an epoch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.batches.numbered_dataset import sequences, step_dataset, write_numbered
from trelm_ds.batches import StepDataset, StepLoader
from trelm_ds.config import MaskingConfig
from trelm_ds.errors import UserError
from trelm_ds.model import Batch

N = 203  # in steps of 16: step 12 spans two epochs
STEPS = 30


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("numbered") / "ds"
    write_numbered(folder, N)
    return folder


def read(dataset: StepDataset, workers: int, first: int = 0, last: int = STEPS) -> list[list[Batch]]:
    loader = StepLoader(dataset, first, last, workers)
    try:
        return [next(loader).micro_batches for _ in range(first, last)]
    finally:
        loader.close()


def same(first: list[list[Batch]], second: list[list[Batch]]) -> bool:
    if [len(step) for step in first] != [len(step) for step in second]:
        return False
    pairs = [pair for steps in zip(first, second, strict=True) for pair in zip(*steps, strict=True)]
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for one, other in pairs
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_the_global_batches_are_the_same_for_any_number_of_ranks(dataset: Path, world_size: int) -> None:
    alone = read(step_dataset(dataset), 0)
    ranks = [read(step_dataset(dataset, rank, world_size), 0) for rank in range(world_size)]
    for step in range(STEPS):
        together = [row for rank in ranks for row in sequences(rank[step])]
        assert sorted(together) == sorted(sequences(alone[step]))
        assert len({len(rank[step]) for rank in ranks}) == 1
    assert all(len(batch.input_ids) <= 120 for rank in ranks for step in rank for batch in step)
    assert len({len(step) for step in alone}) > 1  # accumulation differs between steps


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.usefixtures("warm_workers")
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_each_ranks_batches_are_the_same_for_any_number_of_workers(
    dataset: Path, world_size: int, workers: int
) -> None:
    """Ranks know nothing of each other, so the last one stands for all."""
    of_rank = step_dataset(dataset, world_size - 1, world_size)
    assert same(read(of_rank, workers), read(of_rank, 0))


@pytest.mark.usefixtures("warm_workers")
@pytest.mark.parametrize("tail", ["wrap", "drop"])
def test_a_resumed_run_reads_what_the_undisturbed_one_reads(dataset: Path, tail: str) -> None:
    whole = read(step_dataset(dataset, tail=tail), 0)
    for first in range(STEPS):
        assert same(read(step_dataset(dataset, tail=tail), 0, first), whole[first:])
    assert same(read(step_dataset(dataset, tail=tail), 1, 12), whole[12:])


def test_every_sample_is_read_once_an_epoch(dataset: Path) -> None:
    aligned = read(step_dataset(dataset, batch=29), 0, 0, 14)  # 203 = 7 x 29
    for epoch in (aligned[:7], aligned[7:]):
        assert sorted(row[0] for step in epoch for row in sequences(step)) == list(range(N))
    spanning = read(step_dataset(dataset), 0, 0, N)  # N steps of 16 are 16 epochs
    assert Counter(row[0] for step in spanning for row in sequences(step)) == dict.fromkeys(range(N), 16)


def test_drop_ends_an_epoch_after_the_last_whole_batch(dataset: Path) -> None:
    steps = read(step_dataset(dataset, tail="drop"), 0, 0, 24)
    epochs = [[row[0] for step in part for row in sequences(step)] for part in (steps[:12], steps[12:])]
    left_out = []
    for ids in epochs:
        assert len(ids) == len(set(ids)) == 12 * 16
        left_out.append(set(range(N)) - set(ids))
    assert left_out[0] != left_out[1]
    assert step_dataset(dataset, tail="drop").order.state(13 * 16) == {
        "seed": 2,
        "window_blocks": 3,
        "epoch": 1,
        "position": 16,
    }


def test_a_changing_mask_rate_is_the_same_for_any_number_of_ranks_and_workers(dataset: Path) -> None:
    changing = {"masking": MaskingConfig(probability=(0.8, 0.1)), "max_steps": 5}
    shares = []
    for step in (0, 4):
        (one,) = [sorted(sequences(step_dataset(dataset, **changing)[step].micro_batches))]
        parts = [step_dataset(dataset, rank, 4, **changing)[step].micro_batches for rank in range(4)]
        assert sorted(sequence for part in parts for sequence in sequences(part)) == one
        shares.append(sum(len(labels) for _, _, labels in one) / sum(len(shown) - 2 for _, shown, _ in one))
    assert shares[0] > 0.7
    assert shares[1] < 0.2
    loader = StepLoader(step_dataset(dataset, **changing), 4, 5, workers=1)  # a worker that starts at the last step
    try:
        assert sorted(sequences(next(loader).micro_batches)) == one
    finally:
        loader.close()


def test_a_budget_below_the_longest_sequence_is_refused(dataset: Path) -> None:
    with pytest.raises(UserError, match=r"micro_batch_tokens: 39 is less than the dataset's longest sequence of 40"):
        step_dataset(dataset, budget=39)


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_reaches_the_training_process_as_one_line(dataset: Path, tmp_path: Path, workers: int) -> None:
    write_numbered(tmp_path / "ds", 50)
    shard = tmp_path / "ds" / "shard-000000.tar"
    shard.write_bytes(bytes(shard.stat().st_size))
    loader = StepLoader(step_dataset(tmp_path / "ds"), 0, 4, workers)
    with pytest.raises(UserError, match=r"shard-000000.tar: damaged at byte .* --repair") as error:
        next(loader)
    assert "\n" not in str(error.value)
    loader.close()


def children() -> set[int]:
    listed = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "spawn_main"], capture_output=True, text=True)
    return {int(line) for line in listed.stdout.split()}


@pytest.mark.slow
def test_workers_outlive_signals_and_end_with_the_loader(dataset: Path) -> None:
    before = children()
    loader = StepLoader(step_dataset(dataset), 0, STEPS, 2)
    first = next(loader).micro_batches
    workers = children() - before
    assert len(workers) == 2
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        for worker in workers:
            os.kill(worker, number)
    rest = [next(loader).micro_batches for _ in range(1, 20)]
    assert same([first, *rest], read(step_dataset(dataset), 0, 0, 20))
    loader.close()  # with ten steps unread
    assert not children() & workers


@pytest.mark.slow
def test_the_first_worker_of_a_process_is_as_deaf_as_the_next(dataset: Path, tmp_path: Path) -> None:
    """In a fresh process, where multiprocessing still has its own helper to start."""
    program = tmp_path / "train.py"
    program.write_text(
        "import sys\nfrom pathlib import Path\n"
        "from tests.batches.numbered_dataset import step_dataset\n"
        "from trelm_ds.batches.loader import StepLoader\n"
        "if __name__ == '__main__':\n"
        f"    loader = StepLoader(step_dataset(Path({str(dataset)!r})), 0, 1000, 2)\n"
        "    next(loader)\n"
        "    for worker in loader._iterator._workers:\n"
        "        status = Path(f'/proc/{worker.pid}/status').read_text()\n"
        "        print(status.partition('SigBlk:')[2].split()[0])\n"
        "    loader.close()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, env=environment, timeout=120)
    masks = [int(line, 16) for line in done.stdout.split()]
    assert len(masks) == 2, done.stderr
    for mask in masks:
        assert all(mask >> (number - 1) & 1 for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1))


@pytest.mark.slow
def test_workers_end_with_a_killed_trainer(dataset: Path, tmp_path: Path) -> None:
    program = tmp_path / "train.py"
    program.write_text(
        "import sys, time\nfrom pathlib import Path\n"
        "from tests.batches.numbered_dataset import step_dataset\n"
        "from trelm_ds.batches.loader import StepLoader\n"
        "if __name__ == '__main__':\n"
        f"    loader = StepLoader(step_dataset(Path({str(dataset)!r})), 0, 1000, 1)\n"
        "    next(loader)\n"
        "    print(*[w.pid for w in loader._iterator._workers], flush=True)\n"
        "    time.sleep(600)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen(
        [sys.executable, program], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": root}
    )
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{worker}/cmdline").exists() and Path(f"/proc/{worker}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "the worker is still there"
        time.sleep(0.1)
