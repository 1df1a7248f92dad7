"""What a run says of its speed: counts against torch's own and by hand, shares, what is said of which device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.distributed import run_distributed_test
from tests.training import test_pretrain as plain
from tests.training import test_routing as routed
from tests.training.test_pretrain import train
from trelm_ds.batches import StepReader
from trelm_ds.config import Config
from trelm_ds.distributed import OneProcess, Ranks, connect, disconnect
from trelm_ds.model import Updated, Work, training_flops
from trelm_ds.run_folder import TIMED, read_metrics
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run
from trelm_ds.training.speed import Speed, rate_in_words
from trelm_ds.training.trainer import Trainer


def built(settings: Config, data: Path, run: Path, ranks: Ranks) -> Trainer:
    with StopSignals() as signals:
        return build_run(settings, str(data), run, ranks, signals)


def test_the_flops_of_real_steps(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    """Against torch's count of all that runs. One document a step, which the CPU's attention then does not pad."""
    settings = plain.without_dropout(plain.config(precision="bf16", global_batch_size=1))
    trainer = built(settings, tiny_dataset, tmp_path / "run", one_rank)
    trainer.engine.train()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for _ in range(3):
            trainer.train_step()
    measured = trainer.component(Speed).metrics(2.0)
    assert measured["tflops_per_device"] * 2.0 * 1e12 == pytest.approx(counter.get_total_flops())
    assert trainer.component(Speed).metrics(2.0)["tflops_per_device"] == 0  # begins anew
    trainer.held.close()


def test_a_step_with_a_path_has_fewer(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    """The first choice comes before step 2; the queries of assessing are documents as any other."""
    settings = routed.config(routing={"start_step": 1, "refresh_every": 1, "sample_fraction": 1.0})
    trainer = built(settings, tiny_dataset, tmp_path / "run", one_rank)
    trainer.engine.train()
    speed, steps = trainer.component(Speed), [trainer.steps[number] for number in range(2)]
    for step, updated in zip(steps, (Updated(), Updated(neurons=0.25)), strict=True):
        trainer.train_step()
        expected = sum(training_flops(trainer.engine.module.config, Work.of(b), updated) for b in step.micro_batches)
        tokens = [int(batch.cu_seqlens[-1]) for batch in step.micro_batches]
        sequences = [int(batch.cu_seqlens[batch.n_sequences]) for batch in step.micro_batches]
        measured = speed.metrics(2.0)
        assert measured["tflops_per_device"] * 2e12 == pytest.approx(expected)
        assert measured["tokens_per_s_per_device"] == sum(tokens) / 2
        assert measured["sequence_tokens_per_s"] == sum(sequences) / 2
        assert sum(sequences) < sum(tokens)
    trainer.held.close()


def train_all(cases: list[Config], data: Path, runs: Path) -> None:
    ranks = connect()
    for number, settings in enumerate(cases):
        train(settings, data, runs / f"{number}", ranks)
    disconnect()


def flops_per_token(run: Path) -> list[float]:
    return [point["tflops_per_device"] / point["tokens_per_s_per_device"] for point in read_metrics(run)]


@pytest.mark.slow
def test_every_number_of_ranks_counts_the_same_work(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    """By data, by ZeRO 3, and where two ranks share a model: the FLOPs of a token are the same."""
    settings = routed.config(max_steps=2)
    shared = replace(settings, model=replace(settings.model, tensor_parallel=2))
    sharded = replace(settings, trainer=replace(settings.trainer, ds_config="ds_configs/zero3.json"))
    train(settings, tiny_dataset, tmp_path / "alone", one_rank)
    run_distributed_test(train_all, 2, [settings, sharded, shared], tiny_dataset, tmp_path)
    for number in range(3):
        run = tmp_path / f"{number}"
        assert flops_per_token(run) == pytest.approx(flops_per_token(tmp_path / "alone"))
        for point in read_metrics(run):
            assert point["tokens_per_s_per_device"] == pytest.approx(point["tokens_per_s"] / 2)
            text = point["tokens_per_s"] * (1 - point["query_token_share"])
            assert point["sequence_tokens_per_s"] == pytest.approx(text)
            assert 0 < point["data_wait_share"] <= point["data_wait_share_worst_rank"] < 1
            assert 0.05 < point["peak_resident_gb"] < 100
            assert point.keys() & {"mfu", "peak_memory_gb"} == set()  # of GPUs


class SlowLoader:
    """Steps that come after three seconds of a clock that nobody waits for."""

    def __init__(self, steps: Any, clock: list[float]) -> None:
        self._steps, self._clock, self._next = steps, clock, 0

    def __next__(self) -> Any:
        self._clock[0] += 3.0
        self._next += 1
        return self._steps[self._next - 1]


def test_waiting_for_data_is_a_share_of_the_seconds(
    one_rank: Ranks, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = built(plain.config(), tiny_dataset, tmp_path / "run", one_rank)
    trainer.engine.train()
    clock = [0.0]
    monkeypatch.setattr("trelm_ds.batches.step_reader.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(trainer.reader, "loader", SlowLoader(trainer.steps, clock))
    for _ in range(2):
        trainer.train_step()
    monkeypatch.undo()
    measured = trainer.component(Speed).metrics(24.0)
    assert (measured["data_wait_share"], measured["data_wait_share_worst_rank"]) == (0.25, 0.25)
    assert trainer.component(Speed).metrics(24.0)["data_wait_share"] == 0
    trainer.held.close()


class TwoRanks(OneProcess):
    """This rank, and another that has waited longer, taken more memory and done as much."""

    def gather(self, value: Any) -> Any:
        *work, waited, device_gb, resident_gb = value
        return [value, (*work, waited + 0.5, device_gb + 10, resident_gb + 1)]


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [("NVIDIA H100 80GB HBM3", "bf16", 989.0), ("NVIDIA H100 80GB HBM3", "fp32", None), ("Another", "bf16", None)],
)
def test_on_gpus(name: str, precision: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: name)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda _: 30_000_000_000)
    ranks, reader = TwoRanks(torch.device("cuda", 0)), StepReader.__new__(StepReader)
    reader.waited_s = 1.0
    speed = Speed(plain.config(precision=precision), None, reader, ranks)  # type: ignore[arg-type]
    speed._flops, speed._tokens = 40e12, 500
    measured = speed.metrics(10.0)
    assert measured["tflops_per_device"] == pytest.approx(4.0)
    assert measured["tokens_per_s_per_device"] == pytest.approx(50.0)
    assert measured.get("mfu") == (None if peak is None else pytest.approx(4.0 / peak))
    assert measured["peak_memory_gb"] == 40.0
    assert measured["data_wait_share"] == pytest.approx(0.35)
    assert measured["data_wait_share_worst_rank"] == pytest.approx(0.6)


def test_the_progress_line_is_short() -> None:
    metrics = {"tokens_per_s": 98304.4, "tokens_per_s_per_device": 12288.1}
    assert rate_in_words(metrics, 1) == "98,304 tokens/s"
    assert rate_in_words(metrics, 8) == "98,304 tokens/s, 12,288 per device"
    assert rate_in_words(metrics | {"mfu": 0.4149}, 8) == "98,304 tokens/s, 12,288 per device, MFU 41%"


def test_all_of_it_depends_on_time_or_machine(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    """Or two equal runs would seem to differ."""
    trainer = built(plain.config(), tiny_dataset, tmp_path / "run", one_rank)
    names = {*trainer.component(Speed).metrics(1.0), "mfu", "peak_memory_gb"}
    assert all(name.startswith(TIMED) for name in names)
    trainer.held.close()
