"""A run of made-up numbers in MLflow, and what must be there afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trelm_ds.run_folder import SPOOL
from trelm_ds.tracking.mlflow_run import MlflowRun
from trelm_ds.tracking.sender import Progress
from trelm_ds.tracking.spool import read_spool

KEYS = ("loss", "lr", "system/node-0/cpu_percent")


def tracked(run: Path, uri: str, step: int = 0, key: str = "", experiment: str = "trelm", **about: Any) -> MlflowRun:
    params = {"model.hidden_size": 768, "trainer.ds_config": "ds_configs/zero1.json"} | about
    return MlflowRun(run, uri, experiment, run.name, params, {"from": "a test"}, step, key)


def point(step: int) -> dict[str, float]:
    return {"loss": 1 / step, "lr": step * 1e-6, "system/node-0/cpu_percent": float("nan") if step == 3 else step % 7}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def sent(run: Path) -> int:
    return Progress.of(run).sent


def runs_of(uri: str, experiment: str = "trelm") -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


def check_arrived_once(uri: str, run: Path, steps: list[int], experiment: str = "trelm") -> Any:
    """Every point of the spool is in MLflow once, in order, as it was when it was taken. Returns the MLflow run."""
    from mlflow import MlflowClient

    (found,) = runs_of(uri, experiment)
    taken = [entry.content for entry in read_spool(run / SPOOL) if entry.kind == "metrics"]
    assert [entry["step"] for entry in taken] == steps
    for key in KEYS:
        history = MlflowClient(uri).get_metric_history(found.info.run_id, key)
        got = [(item.step, item.timestamp, repr(item.value)) for item in history]
        if not uri.startswith("file:"):  # SQL has no order of its own
            got.sort()
        assert got == [(entry["step"], entry["time"], repr(float(entry["metrics"][key]))) for entry in taken]
    return found


class Told:
    """Collects what was logged."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.text, self._capsys = "", capsys

    def says(self, text: str) -> bool:
        self.text += self._capsys.readouterr().err
        return text in self.text
