"""Tuning from the first trial to the last, with a program that pretends to train."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from tests.planning.made_plans import training
from trelm_ds.commands.planning import tune_command
from trelm_ds.config import (
    CkaConfig,
    Config,
    LoaderConfig,
    MemoryConfig,
    ModelConfig,
    OptimizerConfig,
    SelectionConfig,
    TrackingConfig,
    TrainerConfig,
    to_yaml,
)
from trelm_ds.errors import UserError
from trelm_ds.files import read_json
from trelm_ds.planning import trials as trials_module
from trelm_ds.planning import tune as tune_module
from trelm_ds.planning.hardware import CPU, GIB, Device
from trelm_ds.planning.node import device_here, ranks_here, this_node
from trelm_ds.planning.trial import RUN, Stopped
from trelm_ds.planning.trials import IDENTITY, TRIALS
from trelm_ds.planning.tune import Tuned, TuneOptions, Tuner, taken
from trelm_ds.run_folder import SPOOL
from trelm_ds.tracking import sync_all

# A step has 160 tokens, so there is one size of micro-batches: each kind is one choice.
CONFIG = Config(
    model=ModelConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_position_embeddings=32
    ),
    selection=SelectionConfig(strategy="none"),
    cka=CkaConfig(decoder="none"),
    memory=MemoryConfig(enabled=False),
    optimizer=OptimizerConfig(warmup_steps=2),
    loader=LoaderConfig(workers=0),
    trainer=TrainerConfig(
        max_steps=1000,
        global_batch_size=16,
        micro_batch_tokens=64,
        precision="fp32",
        ds_config="ds_configs/zero0.json",
    ),
    tracking=TrackingConfig(enabled=False),
)
SLOW = Device(CPU, 4 * GIB, {"fp32": 1e9, "bf16": 1e9}, 1e10, 1e9, 1e9, launch_s=1e-9)
Pretend = Callable[[Path, str, Path, int], list[str]]


def pretend(settings: Path, data: str, run: Path, ranks: int) -> list[str]:
    """Zero1 crashes, zero2 has no memory, the others end well."""
    name = settings.parent.name
    if name.startswith("zero1"):
        return training(run, 2, "raise ValueError('in the middle')")
    return training(run, 1, "raise MemoryError") if name.startswith("zero2") else training(run, 9, "time.sleep(9e4)")


@pytest.fixture(autouse=True)
def _this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_module, "device_here", lambda gpu: SLOW)
    monkeypatch.setattr(trials_module, "pretrain_command", pretend)


def options(data: Path, folder: Path, **changes: object) -> TuneOptions:
    given = TuneOptions(str(data), folder, 60.0, 4, 4, 5.0, "this", 1, None)
    return given._replace(**changes)  # type: ignore[arg-type]


def tuned(
    given: TuneOptions, config: Config = CONFIG, stopped: Callable[[], object] = lambda: False, finish: bool = False
) -> Tuned:
    with taken(given.folder):
        tuner = Tuner(config, given, stopped)
        found = tuner.run()
        if finish:
            tuner.finished({"trials": float(len(found.results))}, [])
        return found


def outcomes(found: Tuned) -> dict[str, str]:
    return {result.choice.name: result.outcome.status for result in found.results}


ALL = {"zero0-64": "ok", "zero1-64": "crashed", "zero2-64": "out of memory", "zero3-64": "ok"}


def made_at(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob(f"{TRIALS}/*/result.json")}


def test_all_is_tried_and_what_fails_is_a_result(tiny_dataset: Path, tmp_path: Path) -> None:
    found = tuned(options(tiny_dataset, tmp_path / "T"))
    assert outcomes(found) == ALL
    assert found.complete
    assert found.left == 4  # recomputed
    assert found.best is not None
    assert found.best.choice.name in ("zero0-64", "zero3-64")
    assert found.configured.name == "zero0-64"


def test_it_goes_on_where_it_was_and_further(tiny_dataset: Path, tmp_path: Path) -> None:
    given = options(tiny_dataset, tmp_path / "T", trials=2)
    assert list(outcomes(tuned(given))) == ["zero0-64", "zero1-64"]
    before = made_at(given.folder)
    assert outcomes(tuned(given._replace(trials=4))) == ALL
    after = made_at(given.folder)
    assert {name: after[name] for name in before} == before
    (given.folder / TRIALS / "zero0-64" / "result.json").unlink()
    assert outcomes(tuned(given._replace(trials=4))) == ALL
    again = made_at(given.folder)
    assert {name for name in again if again[name] != after[name]} == {"zero0-64"}


def test_fewer_trials_forget_none_and_all_take_their_time(tiny_dataset: Path, tmp_path: Path) -> None:
    given = options(tiny_dataset, tmp_path / "T")
    first = tuned(given)
    again = tuned(given._replace(trials=1))
    assert outcomes(again) == ALL
    assert (again.best, again.left) == (first.best, first.left)
    # The last one fits into what the first three have left, but not into what all four have.
    took = sum(result.outcome.seconds for result in first.results)
    assert outcomes(tuned(given._replace(trials=8, budget_minutes=took / 60))) == ALL


def test_before_a_trial_has_begun_other_settings_may_follow(tiny_dataset: Path, tmp_path: Path) -> None:
    given = options(tiny_dataset, tmp_path / "T", trials=1)
    with pytest.raises(Stopped):
        tuned(given, stopped=lambda: True)
    (given.folder / IDENTITY).write_text("{")
    assert outcomes(tuned(given._replace(steps=5))) == {"zero0-64": "ok"}


def test_a_stop_keeps_what_was_measured(tiny_dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "T"
    found = tuned(options(tiny_dataset, folder), stopped=lambda: (folder / TRIALS / "zero2-64" / RUN).exists())
    assert list(outcomes(found)) == ["zero0-64", "zero1-64"]
    assert not found.complete
    assert "zero2-64" not in made_at(folder)
    with pytest.raises(Stopped):
        tuned(options(tiny_dataset, folder), stopped=lambda: True)
    assert outcomes(tuned(options(tiny_dataset, folder))) == ALL


def test_no_trial_begins_behind_the_budget(tiny_dataset: Path, tmp_path: Path) -> None:
    found = tuned(options(tiny_dataset, tmp_path / "T", budget_minutes=1e-6))
    assert outcomes(found) == {"zero0-64": "ok"}  # which had begun before
    assert found.complete
    assert outcomes(tuned(options(tiny_dataset, tmp_path / "T", budget_minutes=1e-6))) == {"zero0-64": "ok"}


def test_plans_stay_as_the_device_was_measured_at_first(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = options(tiny_dataset, tmp_path / "T", trials=1)
    first = tuned(given)
    monkeypatch.setattr(tune_module, "device_here", lambda gpu: SLOW._replace(bandwidth=1.0))
    assert tuned(given).plan.rows == first.plan.rows
    assert read_json(given.folder / IDENTITY)["device"]["bandwidth"] == SLOW.bandwidth


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 5}, r"--steps was 4, is 5; give another --out$"),
        ({"memory": GIB}, r"--memory-limit was 4294967296, is 1073741824; give another --out$"),
        ({"trial_minutes": 4.0}, r"other settings: --trial-minutes was 5.0, is 4.0; give another --out$"),
    ],
)
def test_other_trials_need_another_folder(
    tiny_dataset: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    given = options(tiny_dataset, tmp_path / "T", trials=1)
    tuned(given)
    with pytest.raises(UserError, match=said):
        tuned(given._replace(**changes))  # type: ignore[arg-type]


def test_trials_on_other_threads_are_other_trials(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    given = options(tiny_dataset, tmp_path / "T", trials=1)
    tuned(given)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(UserError, match=r"other settings: threads of a process was 1, is 2; give another --out$"):
        tuned(given)


def test_a_choice_that_cannot_be_is_told_and_others_are_tried(tiny_dataset: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, model=replace(CONFIG.model, tensor_parallel=2))
    found = tuned(options(tiny_dataset, tmp_path / "T", trials=1), config)
    assert outcomes(found) == {"zero0-tp2-64": "skipped", "zero0-64": "ok"}
    assert found.results[0].outcome.reason == "model.tensor_parallel: 2 does not divide 1 GPUs of a node"


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match=r"^--out: .* is a run; give a folder of its own$"), taken(tmp_path):
        pass
    in_use = pytest.raises(UserError, match="is in use by another process")
    with taken(tmp_path / "T"), in_use, taken(tmp_path / "T"):
        pass


def command(data: Path, folder: Path, *more: str) -> int:
    settings = folder.with_suffix(".yaml")
    settings.write_text(to_yaml(CONFIG))
    given = ["--config", settings, "--data", data, "--out", folder, "--trials", "1", "--steps", "4", *more]
    return tune_command([*map(str, given)])


def test_results_are_written_though_nobody_reads(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(text: str) -> int:
        if text:
            raise BrokenPipeError
        return 0

    monkeypatch.setattr(sys.stdout, "write", gone)
    with pytest.raises(BrokenPipeError):
        command(tiny_dataset, tmp_path / "T")
    assert {path.name for path in (tmp_path / "T").iterdir() if path.is_file()} == {
        "best.ds.json", "best.yaml", "results.json", "tune.json", "tune.png",
    }  # fmt: skip


def test_where_nothing_could_be_tried_no_logs_are_named(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tiny_dataset, tmp_path / "T", "--ranks", "3") == 1
    assert capsys.readouterr().out.endswith("\nnothing fits\n")
    assert read_json(tmp_path / "T" / "results.json")["trials"][0]["status"] == "skipped"


def test_ranks_share_a_cpu_but_not_gpus() -> None:
    node = this_node(SLOW, 2, None)
    assert (node.world_size, node.device.memory, node.device.flops["fp32"]) == (2, 2 * GIB, 5e8)
    assert node.usable == 2 * GIB - GIB // 2
    assert this_node(SLOW, 2, GIB // 4).usable == 0
    with pytest.raises(UserError, match=r"--memory-limit: 3.0 GiB for each of 2 ranks, but this machine has 4.0 GiB"):
        this_node(SLOW, 2, 3 * GIB)
    gpu = SLOW._replace(name="h100")
    assert this_node(gpu, 2, None).device == gpu
    assert this_node(gpu, 2, None).usable < 4 * GIB - GIB


def test_there_is_a_rank_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (ranks_here(None), ranks_here(3)) == (1, 3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert (ranks_here(None), ranks_here(3)) == (4, 3)
    with pytest.raises(UserError, match="--ranks: 8, but this node has 4 GPUs; ask for one rank a GPU at most"):
        ranks_here(8)


def test_no_gpu_is_named_where_there_is_none() -> None:
    with pytest.raises(UserError, match="--gpu: trials run on this machine, which has no GPU; leave out h100"):
        device_here("h100")


@pytest.mark.slow
def test_every_trial_is_a_run_in_mlflow(tiny_dataset: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    config = replace(CONFIG, tracking=TrackingConfig(uri=uri, experiment="tuning"))
    given = options(tiny_dataset, tmp_path / "T", trials=2)
    tuned(given, config)  # and ends without a word to MLflow, as if killed
    (given.folder / TRIALS / "zero1-64" / SPOOL).write_text("")  # lost with the machine
    tuned(given._replace(trials=3), config, finish=True)
    sync_all(given.folder)
    client = MlflowClient(uri)
    runs = {
        run.info.run_name: run
        for run in client.search_runs([client.get_experiment_by_name("tuning").experiment_id])
        if run.data.metrics
    }
    parent = runs.pop("T")
    assert (parent.info.status, parent.data.metrics["trials"]) == ("FINISHED", 3.0)
    assert parent.data.params["trainer.global_batch_size"] == "16"
    assert {name: run.info.status for name, run in runs.items()} == {
        "zero0-64": "FINISHED", "zero1-64": "FAILED", "zero2-64": "FAILED",
    }  # fmt: skip
    for name, run in runs.items():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["trelm.status"] == ALL[name]
        assert run.data.params["stage"] == name[4]
        assert run.data.metrics["planned_tokens_per_s"] > 0
    assert runs["zero0-64"].data.metrics["tokens_per_s"] == pytest.approx(1000.0)
    assert runs["zero1-64"].data.tags["trelm.reason"] == "ValueError: in the middle"


def test_the_folder_holds_what_says_how(tiny_dataset: Path, tmp_path: Path) -> None:
    given = options(tiny_dataset, tmp_path / "T", trials=1)
    tuned(given)
    folder = given.folder / TRIALS / "zero0-64"
    settings = yaml.safe_load((folder / "settings.yaml").read_text())
    assert settings["trainer"]["ds_config"] == str(folder / "ds.json")
    assert json.loads((folder / "ds.json").read_text())["zero_optimization"] == {"stage": 0}
    assert not [child for child in psutil.Process(os.getpid()).children() if "-I" in child.cmdline()]
