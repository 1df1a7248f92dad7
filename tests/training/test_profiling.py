"""Recording steps with torch's profiler: what the files hold, what training notices, what an early end leaves."""

from __future__ import annotations

import errno
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import run_distributed_test
from tests.logged import warns
from tests.training.test_build import built
from tests.training.test_pretrain import losses, train, without_plots
from tests.training.test_routing import config, weights_at
from trelm_ds.config import Config
from trelm_ds.distributed import OneProcess, Ranks, connect, disconnect
from trelm_ds.errors import UserError
from trelm_ds.run_folder import committed
from trelm_ds.stopping import FILE, StopSignals
from trelm_ds.training.build import build_run
from trelm_ds.training.component import Component
from trelm_ds.training.profiling import Profiling, Recording
from trelm_ds.training.trainer import Trainer

CPU = torch.device("cpu")


def profiled(settings: Config, window: str | None) -> Config:
    return replace(settings, trainer=replace(settings.trainer, profile_steps=window))


def files(run: Path) -> list[str]:
    """Names of all in RUN/profile, hidden ones too."""
    return sorted(path.name for path in (run / "profile").iterdir()) if (run / "profile").exists() else []


def events(run: Path, name: str) -> list[dict[str, Any]]:
    trace = json.loads(gzip.decompress((run / "profile" / name).read_bytes()))
    assert trace["distributedInfo"]["rank"] == int(name.split(".")[0].removeprefix("rank-"))
    found: list[dict[str, Any]] = trace["traceEvents"]
    return found


def check_trace(run: Path, name: str, steps: list[int]) -> None:
    """It has just these steps, operations within them, and what these were given."""
    found = events(run, name)
    marks = [event for event in found if event.get("cat") == "user_annotation" and event["name"].startswith("step ")]
    assert [mark["name"] for mark in marks] == [f"step {step}" for step in steps]
    products = [event for event in found if event["name"] == "aten::addmm"]
    for mark in marks:
        within = [one for one in products if mark["ts"] <= one["ts"] <= mark["ts"] + mark["dur"]]
        assert within
        assert all(len(one["args"]["Input Dims"][1]) == 2 for one in within)
    assert any(event["name"] == "[memory]" for event in found)


def equal_weights(first: Path, second: Path, step: int = 4) -> bool:
    ours, theirs = weights_at(first, step), weights_at(second, step)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "routing"), [(0, {}), (1, {"compact": True}), (2, {"trainable": "ffn_only"}), (3, {"path": "full"})]
)
def test_training_does_not_notice(
    stage: int, routing: dict[str, Any], one_rank: Ranks, tiny_dataset: Path, tmp_path: Path
) -> None:
    """With dropout, routing and the memory bank: losses and weights are the same to the bit."""
    settings = config(stage, routing=routing)
    for name, window in (("with", "2:4"), ("without", None)):
        train(profiled(settings, window), tiny_dataset, tmp_path / name, one_rank)
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    assert equal_weights(tmp_path / "with", tmp_path / "without")
    assert files(tmp_path / "with") == ["rank-0.steps-2-4.json.gz"]
    assert files(tmp_path / "without") == []
    check_trace(tmp_path / "with", "rank-0.steps-2-4.json.gz", [2, 3])


def train_both(settings: Config, data: Path, folder: Path) -> None:
    ranks = connect()
    for name, window in (("with", "4:5"), ("without", None)):  # up to the run's last step
        train(profiled(settings, window), data, folder / name, ranks)
    disconnect()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_every_rank_writes_its_own(stage: int, tiny_dataset: Path, tmp_path: Path) -> None:
    run_distributed_test(train_both, 2, config(stage, log_every=3), tiny_dataset, tmp_path)
    assert files(tmp_path / "with") == [f"rank-{rank}.steps-4-5.json.gz" for rank in (0, 1)]
    for name in files(tmp_path / "with"):
        check_trace(tmp_path / "with", name, [4])
        assert any(event["name"].startswith("gloo:") for event in events(tmp_path / "with", name))
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    assert equal_weights(tmp_path / "with", tmp_path / "without")


def trainer_of(settings: Config, data: Path, run: Path, ranks: Ranks, signals: StopSignals) -> Trainer:
    return build_run(settings, str(data), run, ranks, signals)


def test_a_stop_within_leaves_nothing_and_a_start_within_records_nothing(
    one_rank: Ranks, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, settings = tmp_path / "run", profiled(config(), "2:4")
    with without_plots(), StopSignals() as signals:
        trainer = trainer_of(settings, tiny_dataset, run, one_rank, signals)
        monkeypatch.setattr(trainer.requests, "reason", lambda: FILE if trainer.step == 2 else 0)
        with warns("trainer.profile_steps: stopped within 2:4; nothing is written"):
            assert trainer.train() == 130
    assert committed(run)[0].name == "step-00000002"
    assert files(run) == []
    assert not torch.autograd._profiler_enabled()
    with warns("trainer.profile_steps: this start begins with step 3, behind step 2; nothing is recorded"):
        train(settings, tiny_dataset, run, one_rank)
    assert files(run) == []
    train(config(), tiny_dataset, tmp_path / "undisturbed", one_rank)
    assert losses(run) == losses(tmp_path / "undisturbed")


class Fails(Component):
    def __init__(self, step: int) -> None:
        self._step = step

    def after_step(self, taken: bool) -> dict[str, int | torch.Tensor]:
        self._step -= 1
        if not self._step:
            raise UserError("the bank is closed")
        return {}


def test_a_failure_within_leaves_nothing(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    with without_plots(), StopSignals() as signals:
        trainer = trainer_of(profiled(config(), "2:4"), tiny_dataset, tmp_path / "run", one_rank, signals)
        trainer.components.insert(0, Fails(3))
        with pytest.raises(UserError, match="the bank is closed"):
            trainer.train()
    assert files(tmp_path / "run") == []
    assert not torch.autograd._profiler_enabled()


def test_a_full_disk_costs_the_profile_alone(
    one_rank: Ranks, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("trelm_ds.training.profiling.write_atomically", full)
    with warns(r"profile: 1 of 1 ranks could not write all of it \(rank 0: .*No space left"):
        train(profiled(config(max_steps=2), "1:2"), tiny_dataset, tmp_path / "run", one_rank)
    assert files(tmp_path / "run") == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """Of this rank, not of others, whose files may be in the writing."""
    folder = tmp_path / "profile"
    folder.mkdir()
    names = [".rank-1.steps-1-2.json.gz.7-a.tmp", ".rank-11.steps-1-2.json.gz.7-a.tmp", "rank-1.steps-1-2.json.gz"]
    for name in names:
        (folder / name).touch()
    Profiling(range(1, 2), tmp_path, 0, Ranks(1, 12, 1, CPU, None), None).begin()  # type: ignore[arg-type]
    assert files(tmp_path) == sorted(names[1:])


class Ten(OneProcess):
    """Rank 0 of ten, of which the fourth could not write."""

    def gather(self, value: Any) -> Any:
        problem, names = value
        every = [(problem, [name.replace("rank-0", f"rank-{rank}") for name in names]) for rank in range(10)]
        every[3] = ("rank 3: disk full", [])
        return every


def test_mlflow_gets_those_of_the_first_eight_ranks(tmp_path: Path) -> None:
    published: list[str] = []
    part = Profiling(range(3, 4), tmp_path, 0, Ten(CPU), published.append)
    for steps_done in range(4):
        part.before_read(steps_done)
        torch.ones(2, 2) @ torch.ones(2, 2)
        part.after_step(True)
        if steps_done == 2:
            with warns(r"profile: 1 of 1 ranks could not write all of it \(rank 3: disk full\)"):
                part.metrics(1.0)
    assert published == [f"profile/rank-{rank}.steps-3-4.json.gz" for rank in (0, 1, 2, 4, 5, 6, 7)]
    part.metrics(1.0)  # written once
    assert len(published) == 7


def test_a_gpu_s_memory_is_recorded_as_long_as_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this order, since what ends the recording also clears it. On stand-ins; a GPU has not run this yet."""
    calls: list[Any] = []

    def dump(path: str) -> None:
        calls.append("dump")
        Path(path).write_bytes(b"memory")

    def profile(activities: list[Any], **_: Any) -> Any:
        calls.append([str(one).split(".")[-1] for one in activities])
        return type("Profile", (), {"start": lambda _: calls.append("start"), "stop": lambda _: calls.append("stop")})()

    def record(enabled: Any = "all", **_: Any) -> None:
        calls.append(enabled)

    monkeypatch.setattr("torch.cuda.memory._record_memory_history", record)
    monkeypatch.setattr("torch.cuda.memory._dump_snapshot", dump)
    monkeypatch.setattr("trelm_ds.training.profiling.profile", profile)
    recording = Recording(torch.device("cuda", 0))
    recording.finish()
    assert calls == [["CPU", "CUDA"], "all", "start", "dump", "stop", None]
    assert recording.memory == b"memory"
    monkeypatch.setattr("torch.cuda.memory._dump_snapshot", lambda path: Path(path, "nowhere").touch())
    recording = Recording(torch.device("cuda", 0))
    recording.finish()  # training goes on
    assert recording.memory is None
    assert "nowhere" in recording.problem
    calls.clear()
    Recording(torch.device("cuda", 0)).stop()
    assert calls[-1] is None
    assert "dump" not in calls


def test_only_a_run_that_asks_for_it_has_the_part(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    with_, without = (profiled(config(), window) for window in ("2:4", None))
    assert built(with_, tiny_dataset, tmp_path / "with", one_rank).component(Profiling)
    with pytest.raises(LookupError):
        built(without, tiny_dataset, tmp_path / "without", one_rank).component(Profiling)
