"""Log a run to MLflow through the spool; rank 0 only."""

from __future__ import annotations

import contextlib
import getpass
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from trelm_ds import log
from trelm_ds.redact import without_password
from trelm_ds.tracking.sender import PARENT, Sender
from trelm_ds.tracking.spool import SPOOL, Spool
from trelm_ds.tracking.store import check_address
from trelm_ds.tracking.uploader import Uploader

_WAIT_FINISHED_S = 60.0
_WAIT_STOPPED_S = 10.0
_WAIT_PART_S = 2.0


class MlflowRun:
    """An MLflow run that survives interruptions of training and of the server.

    Everything logged goes into the spool in the run folder first; a thread sends it to MLflow.

    Args:
        run: the run folder.
        address: tracking URI.
        experiment: where the run begins.
        name: the run's name there.
        params: logged as parameters.
        tags: tags of the MLflow run.
        step: steps done before this process.
        key: key of the run in MLflow according to its checkpoint; "" for a new run.
        parent: key of the run that this one is a part of, in the same experiment; "" for none.

    Raises:
        UserError: the tracking address cannot work. A server that does not answer at the moment is not an error.
    """

    def __init__(
        self,
        run: Path,
        address: str,
        experiment: str,
        name: str,
        params: dict[str, Any],
        tags: dict[str, str],
        step: int = 0,
        key: str = "",
        parent: str = "",
    ) -> None:
        self._run, self._failed = run, False
        check_address(address)
        self._spool = Spool(run)
        shown = {name: without_password(str(value)) for name, value in params.items()}
        self._spool.begin(step, experiment, name, shown, tags | ({PARENT: parent} if parent else {}), key)
        self._uploader = Uploader(Sender(run, address, experiment))

    @property
    def key(self) -> str:
        """Key by which MLflow finds the run, stored in checkpoints."""
        return self._spool.key

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Log metrics at a step; a step that is recorded already is ignored."""
        self._record(lambda: self._spool.metrics(step, metrics))

    def tag(self, tags: dict[str, str]) -> None:
        """Give the run tags."""
        self._record(lambda: self._spool.tags({name: without_password(value) for name, value in tags.items()}))

    def log_file(self, name: str) -> None:
        """Log a file of the run folder."""
        self._record(lambda: self._spool.file(name))

    def end(self, status: Literal["FINISHED", "KILLED", "FAILED"]) -> None:
        """Record the final status and give MLflow some time to receive everything.

        A stopped run waits less: it may be killed soon, and its continuation sends the rest.
        """
        self._record(lambda: self._spool.status(status))
        if left := self._uploader.close(_WAIT_FINISHED_S if status == "FINISHED" else _WAIT_STOPPED_S):
            log.warning(f"{left}; they are sent when the run continues, or by `trelm sync {self._run}`")

    def end_part(self, status: Literal["FINISHED", "KILLED", "FAILED"]) -> None:
        """Record the final status of one of many runs below another, and hardly wait.

        A store that is down would cost as many waits as there are runs. What is left is sent by `sync_all`.
        """
        self._record(lambda: self._spool.status(status))
        self._uploader.close(_WAIT_PART_S)

    def _record(self, write: Callable[[], Any]) -> None:
        """Write to the spool and wake the uploader; a failing disk is reported once and does not stop training."""
        try:
            write()
        except OSError as error:
            if not self._failed:
                log.warning(
                    f"{self._run / SPOOL}: cannot be written ({error.strerror}); MLflow will lack what is logged now"
                )
            self._failed = True
        self._uploader.wake()


def source_tags(command: str, hosts: list[str]) -> dict[str, str]:
    """Return MLflow's standard tags for the source of a run (program, user, git commit), and the names of the nodes."""
    tags = {"mlflow.source.name": f"trelm {command}", "mlflow.source.type": "JOB"}
    with contextlib.suppress(OSError, KeyError):  # a user id without a name, as is common in containers
        tags["mlflow.user"] = getpass.getuser()
    if commit := _git_commit():
        tags["mlflow.source.git.commit"] = commit
    return tags | {f"system.node-{number}": host for number, host in enumerate(hosts)}


def _git_commit() -> str | None:
    """Return the commit of the checkout this package runs from; None for an installed package.

    An installation may lie inside another project's checkout, so this file itself must be tracked.
    """
    if commit := os.environ.get("TRELM_GIT_COMMIT"):  # set by `trelm submit`, whose snapshots have no .git
        return commit

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None
