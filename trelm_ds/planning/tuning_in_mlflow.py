"""Tuning in MLflow: one run for the command, one below it for every trial."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from trelm_ds import log
from trelm_ds.config import Config
from trelm_ds.errors import UserError
from trelm_ds.files import read_json_lines
from trelm_ds.planning.plan import Planned
from trelm_ds.planning.trial import LOG
from trelm_ds.planning.trials import RESULT, Result
from trelm_ds.run_folder import SPOOL, tracking_uri
from trelm_ds.tracking import MlflowRun, source_tags, sync

_ENDED = ("FINISHED", "FAILED")


class TuneTracking:
    """Tells MLflow of trials, by a spool in the folder and one in every trial's; never waits long for the store.

    Args:
        folder: where the trials are.
        params: what all trials share.

    Raises:
        UserError: the address cannot work.
    """

    def __init__(self, config: Config, folder: Path, params: dict[str, Any]) -> None:
        self._settings, self._folder, self._children = config.tracking, folder, list[Path]()
        self._parent: MlflowRun | None = None
        self._child: MlflowRun | None = None
        if config.tracking.enabled:
            self._address = tracking_uri(config, folder)
            shown = {name: value if isinstance(value, str) else json.dumps(value) for name, value in params.items()}
            self._parent = self._begin(folder, config.tracking.run_name or folder.resolve().name, shown)

    def _begin(self, folder: Path, name: str, params: dict[str, Any], parent: str = "") -> MlflowRun:
        tags, experiment = source_tags("tune", [socket.gethostname()]), self._settings.experiment
        return MlflowRun(folder, self._address, experiment, name, params, tags, parent=parent)

    def begin(self, row: Planned, folder: Path) -> None:
        """Begin the run of a trial, or go on with it."""
        if self._parent is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        planned = {"planned_tokens_per_s": round(row.tokens_per_s, 1)}
        if row.memory is not None and row.time is not None:
            planned |= {"planned_peak_bytes": row.memory.peak, "planned_step_s": row.time.total}
        self._child = self._begin(folder, row.choice.name, row.choice._asdict() | planned, self._parent.key)
        if folder not in self._children:
            self._children.append(folder)

    def end(self, result: Result) -> None:
        """End the run that has begun, with what came of it."""
        if self._child is None:
            return
        outcome, memory = result.outcome, result.planned.memory
        metrics = {"seconds": outcome.seconds, "steps": float(outcome.steps)}
        metrics |= {"planned_tokens_per_s": result.planned.tokens_per_s}
        metrics |= {} if memory is None else {"planned_peak_gb": memory.peak / 1e9}
        metrics |= {} if outcome.tokens_per_s is None else {"tokens_per_s": outcome.tokens_per_s}
        metrics |= {} if outcome.peak_bytes is None else {"peak_gb": outcome.peak_bytes / 1e9}
        self._child.log(1, metrics)
        self._child.tag({"trelm.status": outcome.status, "trelm.reason": outcome.reason})
        for name in (RESULT, LOG):
            self._child.log_file(name)
        self._child.end_part("FINISHED" if outcome.status == "ok" else "FAILED")
        self._child = None

    def known(self, result: Result, folder: Path) -> None:
        """Tell of a trial of before, unless its spool has all of it."""
        if self._parent is None:
            return
        entries = read_json_lines(folder / SPOOL)
        if entries and entries[-1].get("status") in _ENDED:
            self._children.append(folder)
            return
        self.begin(result.planned, folder)
        self.end(result)

    def finished(self, metrics: dict[str, float], files: list[str]) -> None:
        """End the command's run with what was found, and send what still waits."""
        if self._parent is None:
            return
        self._parent.log(1, metrics)
        for name in files:
            self._parent.log_file(name)
        self._parent.end("FINISHED")
        for folder in self._children:
            try:
                sync(folder, self._address)
            except UserError as error:
                log.warning(f"{error}; `trelm sync {self._folder}` sends them, and those of other trials there")
                return

    def stopped(self, failed: bool) -> None:
        """End the runs without a result: they were stopped, or the command has failed."""
        for run in (self._child, self._parent):
            if run is not None:
                run.end_part("FAILED" if failed else "KILLED")
