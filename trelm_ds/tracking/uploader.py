"""When the spool is sent: beside training, on a thread of its own, or by `trelm sync`."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from trelm_ds import log
from trelm_ds.errors import UserError
from trelm_ds.files import lock
from trelm_ds.redact import shown
from trelm_ds.run_folder import LOCK, SPOOL
from trelm_ds.tracking.sender import Progress, Sender

_LONGEST_PAUSE_S = 30.0
_LAST_ATTEMPTS = 10  # a second apart, when training has ended
_SYNC_ATTEMPTS = 3


class Drain:
    """Sends a run's spool while it grows, so that training never waits for MLflow.

    Says so in one line when MLflow does not answer, and in another when it is back.
    """

    def __init__(self, sender: Sender) -> None:
        self._sender, self._problem = sender, ""
        self._news, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is something new."""
        self._news.set()

    def close(self, wait_s: float) -> str:
        """Ends the thread when all is sent, when MLflow does not answer, or after `wait_s` seconds.

        Returns what to tell people of what is left, or "".
        """
        self._closing.set()
        self._news.set()
        self._thread.join(wait_s)
        self._sender.stop.set()  # what is under way ends by itself, or with the process
        left = self._sender.waiting()
        because = f" ({self._problem})" if self._problem else ""
        return f"{left} entries wait for MLflow{because}" if left else ""

    def _work(self) -> None:
        failures = sent = last_attempts = 0
        while not self._sender.stop.is_set():
            self._news.clear()
            closing = self._closing.is_set()
            try:
                self._sender.send_waiting()
            except Exception as error:
                self._problem = self._sender.reason(error)
                failures += 1
                if failures == 2:  # one failure alone is nobody's business
                    sent = self._sender.sent
                    log.warning(f"MLflow: {self._problem}; training goes on and {SPOOL} keeps what MLflow has to hear")
                pause = min(2.0 ** (failures - 1), _LONGEST_PAUSE_S)
                last_attempts += closing
                if last_attempts == _LAST_ATTEMPTS:
                    return
                if closing:
                    self._sender.stop.wait(min(pause, 1.0))
                else:
                    self._closing.wait(pause)
                continue
            if failures > 1:
                log.warning(f"MLflow is back and has {self._sender.sent - sent} more entries")
            self._problem, failures = "", 0
            if closing:
                return
            self._news.wait()


def sync(run: Path, address: str | None = None) -> tuple[int, str]:
    """Sends what waits in a run folder.

    Args:
        run: folder of a run that no process is training.
        address: tracking URI; default: the one that the run uses.

    Returns:
        the number of entries sent, and the store's address without password.

    Raises:
        UserError: no spool there, no address to send it to, or the store does not answer.
    """
    if not (run / SPOOL).is_file():
        raise UserError(f"{run}: holds no {SPOOL}; give the folder of a run with tracking")
    with lock(run / LOCK, f"{run}"):
        address = address or _known_address(run)
        sender = Sender(run, address)
        for attempt in range(_SYNC_ATTEMPTS):
            try:
                sender.send_waiting()
                return sender.sent, shown(address)
            except Exception as error:
                problem = sender.reason(error)
            if attempt + 1 < _SYNC_ATTEMPTS:
                time.sleep(2.0**attempt)
        raise UserError(f"{shown(address)}: {problem}; {sender.waiting()} entries of {run / SPOOL} wait")


def _known_address(run: Path) -> str:
    """The address that the run uses; a password is not kept there, so it has to be in the environment."""
    store, given = Progress.of(run).store, os.environ.get("MLFLOW_TRACKING_URI", "")
    if store is None:
        raise UserError(f"{run}: does not say where to; give --uri")
    if shown(given) == store:
        return given
    if "://...@" in store or "=..." in store:
        raise UserError(f"{store}: user and password are not kept; give --uri or set MLFLOW_TRACKING_URI")
    return store
