"""Follows a run: `metrics.jsonl` in the run folder, always; MLflow, if enabled. Rank 0 only."""

from __future__ import annotations

import contextlib
import getpass
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from trelm_ds import log
from trelm_ds.config import Config, flatten, public
from trelm_ds.redact import without_password
from trelm_ds.run_folder import tracking_uri
from trelm_ds.tracking.sender import Sender
from trelm_ds.tracking.spool import SPOOL, Spool
from trelm_ds.tracking.uploader import Drain

_WAIT_FINISHED_S = 60.0
_WAIT_STOPPED_S = 10.0


class MlflowRun:
    """An MLflow run that outlives interruptions of training and of the server.

    What is logged goes into the spool in the run folder; a thread brings it to MLflow.

    Args:
        config: of the run, logged as parameters.
        run: its folder.
        step: steps done before.
        about: further parameters: what the configuration does not say.
        tags: of the MLflow run.
        key: of the run in MLflow, as the checkpoint has it; "" for a run that begins.

    Raises:
        UserError: the tracking address cannot work. A server that does not answer is no such case.
    """

    def __init__(
        self, config: Config, run: Path, step: int, about: dict[str, Any], tags: dict[str, str], key: str = ""
    ) -> None:
        self._run, self._failed = run, False
        self._spool = Spool(run)
        sender = Sender(run, tracking_uri(config, run))
        params = {name: without_password(str(value)) for name, value in (flatten(public(config)) | about).items()}
        self._spool.begin(
            step, config.tracking.experiment, config.tracking.run_name or run.resolve().name, params, tags, key
        )
        self._drain = Drain(sender)

    @property
    def key(self) -> str:
        """Goes into checkpoints."""
        return self._spool.key

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """A log point; one of a step that is recorded already is left out."""
        self._note(lambda: self._spool.metrics(step, metrics))

    def log_file(self, name: str) -> None:
        """A file of the run folder."""
        self._note(lambda: self._spool.file(name))

    def end(self, status: Literal["FINISHED", "KILLED", "FAILED"]) -> None:
        """Waits for MLflow, but not for long: a run that is stopped has little time, and is to be continued."""
        self._note(lambda: self._spool.status(status))
        if left := self._drain.close(_WAIT_FINISHED_S if status == "FINISHED" else _WAIT_STOPPED_S):
            log.warning(f"{left}; they are sent when the run continues, or by `trelm sync {self._run}`")

    def _note(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except OSError as error:  # a full disk is no reason to stop training
            if not self._failed:
                log.warning(
                    f"{self._run / SPOOL}: cannot be written ({error.strerror}); MLflow will lack what is logged now"
                )
            self._failed = True
        self._drain.wake()


def source_tags(hosts: list[str]) -> dict[str, str]:
    """MLflow's tags of where a run comes from: program, user, commit of a checkout; and the names of the nodes."""
    tags = {"mlflow.source.name": "trelm pretrain", "mlflow.source.type": "JOB"}
    with contextlib.suppress(OSError, KeyError):  # a user id without a name, as in containers
        tags["mlflow.user"] = getpass.getuser()
    if commit := _git_commit():
        tags["mlflow.source.git.commit"] = commit
    return tags | {f"system.node-{number}": host for number, host in enumerate(hosts)}


def _git_commit() -> str | None:
    """The commit this package runs from; None where it is installed, also below somebody else's checkout."""
    if commit := os.environ.get("TRELM_GIT_COMMIT"):  # of a snapshot, by `trelm submit`
        return commit

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None
