"""Fine-tuning in MLflow: one run for the command, one below it for every learning rate and seed."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trelm_ds import log
from trelm_ds.errors import UserError
from trelm_ds.evaluation.finetuning.trainer import EpochRecord, RunRecord
from trelm_ds.evaluation.tasks import Scores
from trelm_ds.run_folder import SPOOL, default_store
from trelm_ds.tracking import MlflowRun, source_tags, sync


class TaskTracking:
    """Tells MLflow of a command's runs; like pre-training, it never waits for the store.

    Args:
        folder: where the runs' folders are, and the spool of the run above them.
        address: tracking URI; None: MLFLOW_TRACKING_URI, else mlflow.db beside `folder`.
        experiment: where the runs begin.
        name: of the command's run.
        params: its parameters.
        enabled: False tells nobody, as on ranks other than 0.
    """

    def __init__(
        self, folder: Path, address: str | None, experiment: str, name: str, params: dict[str, Any], enabled: bool
    ) -> None:
        self._folder, self._experiment, self._children = folder, experiment, list[Path]()
        self._parent: MlflowRun | None = None
        if enabled:
            self._address = address or os.environ.get("MLFLOW_TRACKING_URI") or default_store(folder, "--tracking-uri")
            try:
                self._parent = self._begin(folder, name, params)
            except UserError as error:
                raise UserError(str(error).replace("tracking.uri:", "--tracking-uri:", 1)) from None

    def _begin(self, folder: Path, name: str, params: dict[str, Any], parent: str = "") -> MlflowRun:
        tags = source_tags("evaluate", [socket.gethostname()])
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return MlflowRun(folder, self._address, self._experiment, name, _flat(params), tags, parent=parent)
        except OSError as error:
            raise UserError(f"--out: {folder} cannot be written: {error.strerror}") from None

    @contextlib.contextmanager
    def child(self, name: str, params: dict[str, Any]) -> Iterator[ChildTracking]:
        """Begin a run below the command's; its status says how the block ended."""
        if self._parent is None:
            yield ChildTracking(None)
            return
        folder = self._folder / name
        run = self._begin(folder, name, params, self._parent.key)
        self._children.append(folder)
        try:
            yield ChildTracking(run)
        except BaseException:
            run.end_part("FAILED")
            raise
        run.end_part("FINISHED")

    def known(self, name: str) -> None:
        """Note a run of before, of which MLflow may not have heard all."""
        if self._parent is not None and (self._folder / name / SPOOL).is_file():
            self._children.append(self._folder / name)

    def finished(self, scores: dict[str, float]) -> None:
        """Log the command's scores and send what still waits."""
        if self._parent is None:
            return
        self._parent.log(1, scores)
        self._parent.end("FINISHED")
        for folder in self._children:
            try:
                sync(folder, self._address)
            except UserError as error:
                log.warning(f"{error}; `trelm sync {self._folder}` sends them, and those of other runs there")
                return

    def failed(self) -> None:
        """Record that the command did not come to its end."""
        if self._parent is not None:
            self._parent.end("FAILED")


class ChildTracking:
    """Tells MLflow of one fine-tuning."""

    def __init__(self, run: MlflowRun | None) -> None:
        self._run = run

    def epoch(self, record: EpochRecord) -> None:
        """Log an epoch's loss and dev scores."""
        if self._run is not None:
            self._run.log(record.epoch, {"loss": record.loss} | _named("dev", record.dev))

    def finished(self, record: RunRecord) -> None:
        """Log the scores of the chosen weights, behind the last epoch."""
        if self._run is not None:
            scores = {name: value for split, of in record.scores.items() for name, value in _named(split, of).items()}
            best = {f"best/{name}": value for name, value in scores.items()}
            self._run.log(len(record.epochs) + 1, best | {"best/epoch": float(record.best_epoch)})


def _named(split: str, scores: Scores) -> Scores:
    return {f"{split}/{metric}": value for metric, value in scores.items()}


def _flat(params: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in params.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
