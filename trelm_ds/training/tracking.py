"""Follows a run: `metrics.jsonl` in the run folder, always; MLflow, if enabled. Rank 0 only."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from trelm_ds.config import Config, flatten
from trelm_ds.errors import UserError
from trelm_ds.files import write_atomically
from trelm_ds.shards import Damage

METRICS = "metrics.jsonl"
QUARANTINE = "quarantine.jsonl"
_RUN_ID = "mlflow_run.json"


def tracking_uri(config: Config, run: Path) -> str:
    """The setting, else MLFLOW_TRACKING_URI, else a sqlite file beside the run folder."""
    default = f"sqlite:///{run.resolve().parent / 'mlflow.db'}"
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default


class MetricsFile:
    """One JSON object a log point. A resumed run drops the points after the step it continues from."""

    def __init__(self, run: Path, from_step: int) -> None:
        self.path = run / METRICS
        kept = [line for line in read_metrics(run) if line["step"] <= from_step]
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **metrics}) + "\n")


def note_quarantine(run: Path, step: int, damages: list[Damage]) -> None:
    """Adds damaged blocks to `quarantine.jsonl`, one JSON object for each: shard, offset, sequences, reason, step."""
    path = run / QUARANTINE
    known = set()
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError, TypeError, KeyError):  # a line that a kill cut short
            entry = json.loads(line)
            known.add((entry["shard"], entry["offset"]))
    for damage in damages:
        if (damage.shard, damage.offset) not in known:
            warnings.warn(f"{damage.shard}: damaged block at byte {damage.offset} ({damage.reason})", stacklevel=2)
            entry = {name: value for name, value in damage._asdict().items() if name != "block"}
            with path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry | {"step": step}) + "\n")


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The log points of a run, in order; a line that a kill cut short is left out."""
    path = run / METRICS
    points = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            point = json.loads(line)
        except ValueError:
            break
        if isinstance(point, dict) and {"step", "loss", "accuracy", "lr"} <= point.keys():
            points.append(point)
    return points


class MlflowRun:
    """An MLflow run that outlives interruptions: its id is kept in the run folder.

    What MLflow cannot take while training goes on (its server is down) costs a warning, never the run.

    Args:
        config: of the run, logged as parameters.
        run: its folder.
        about: further parameters: what the configuration does not say.

    Raises:
        UserError: the store cannot be opened at the start.
    """

    def __init__(self, config: Config, run: Path, about: dict[str, Any]) -> None:
        # Defaults retry for minutes; training waits meanwhile.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        import logging

        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        from mlflow import MlflowClient

        self.uri = tracking_uri(config, run)
        try:
            self._client = MlflowClient(self.uri)
            self.run_id = self._continue(config, run) or self._start(config, run, about)
        except Exception as error:  # whatever the store raises
            shown = without_password(self.uri)
            reason = _first_line(error).replace(self.uri, shown)
            raise UserError(f"tracking.uri: cannot use {shown}: {without_password(reason)}") from None

    def _continue(self, config: Config, run: Path) -> str | None:
        try:
            run_id = json.loads((run / _RUN_ID).read_text(encoding="utf-8"))["run_id"]
        except (OSError, ValueError, TypeError, KeyError):  # none yet, or damaged
            return None
        try:
            self._client.update_run(run_id, status="RUNNING")
            logged = self._client.get_run(run_id).data.params
            # Parameters cannot be changed; what a continuation does otherwise becomes a tag.
            for name, value in flatten(public(config)).items():
                if name in logged and logged[name] != str(value):
                    self._client.set_tag(run_id, f"continued.{name}", str(value))
        except Exception:  # another store, or the run was deleted there: start a new one
            return None
        return run_id

    def _start(self, config: Config, run: Path, about: dict[str, Any]) -> str:
        from mlflow.entities import Param

        name = config.tracking.experiment
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            local = self.uri.startswith("sqlite:")
            location = (run.resolve().parent / "mlartifacts").as_uri() if local else None
            experiment_id = self._client.create_experiment(name, artifact_location=location)
        else:
            experiment_id = experiment.experiment_id
        started = self._client.create_run(experiment_id, run_name=config.tracking.run_name or run.name)
        run_id = started.info.run_id
        parameters = [Param(key, str(value)) for key, value in (flatten(public(config)) | about).items()]
        self._client.log_batch(run_id, params=parameters)
        write_atomically(run / _RUN_ID, json.dumps({"run_id": run_id, "experiment": name}) + "\n")
        return run_id

    def log(self, step: int, metrics: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [Metric(key, value, now, step) for key, value in metrics.items()]
        self._try(lambda: self._client.log_batch(self.run_id, metrics=entries))

    def log_file(self, path: Path) -> None:
        self._try(lambda: self._client.log_artifact(self.run_id, str(path)))

    def end(self, status: Literal["FINISHED", "KILLED", "FAILED"]) -> None:
        self._try(lambda: self._client.set_terminated(self.run_id, status=status))

    def _try(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            warnings.warn(
                f"MLflow: {without_password(_first_line(error))} (metrics are also in {METRICS})", stacklevel=3
            )


def _first_line(error: Exception) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line.split(" (Caused by")[0][:300]


def without_password(text: str) -> str:
    """The text with user and password taken out of every address in it."""
    return re.sub(r"(\w://)[^/@\s]*@", r"\1...@", text)


def public(config: Config) -> Config:
    """The configuration as it may be written down: no password in the tracking address."""
    uri = config.tracking.uri
    return replace(config, tracking=replace(config.tracking, uri=uri and without_password(uri)))
