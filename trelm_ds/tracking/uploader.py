"""Decide when the spool is sent: by a thread during training, or by `trelm sync`."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from trelm_ds import log
from trelm_ds.errors import UserError
from trelm_ds.files import lock
from trelm_ds.redact import is_incomplete, shown
from trelm_ds.run_folder import LOCK, SPOOL
from trelm_ds.tracking.sender import Progress, Sender
from trelm_ds.tracking.spool import copied_from
from trelm_ds.tracking.store import check_address

_LONGEST_PAUSE_S = 30.0
_CLOSING_S = 10.0  # once training has ended, a store that fails so long after that is given up
_SYNC_ATTEMPTS = 3


class Uploader:
    """Sends the spool from a thread while training appends to it, so that training never waits for MLflow.

    One warning says that MLflow does not answer, another that it is back.
    """

    def __init__(self, sender: Sender) -> None:
        self._sender, self._problem, self._closed = sender, "", 0.0
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Tell the thread that the spool has new entries."""
        self._wake.set()

    def close(self, wait_s: float) -> str:
        """Stop once everything is sent, MLflow does not answer, or `wait_s` seconds have passed.

        Returns:
            a message about the entries that are still waiting, "" where there are none.
        """
        self._closed = time.monotonic()
        self._closing.set()
        self._wake.set()
        self._thread.join(wait_s)
        self._sender.stop.set()  # a call in progress ends by itself, or with the process
        left = self._sender.waiting()
        because = f" ({self._problem})" if self._problem else ""
        return f"{left} entries wait for MLflow{because}" if left else ""

    def _run(self) -> None:
        failures = sent = 0
        while not self._sender.stop.is_set():
            self._wake.clear()  # before sending: an entry appended meanwhile wakes the thread again
            closing = self._closing.is_set()
            try:
                self._sender.send_waiting()
            except Exception as error:
                self._problem = self._sender.problem(error)
                failures += 1
                if failures == 2:  # a single failure is not worth a warning
                    sent = self._sender.sent
                    log.warning(f"MLflow: {self._problem}; training goes on and {SPOOL} keeps what MLflow has to hear")
                pause = min(2.0 ** (failures - 1), _LONGEST_PAUSE_S)
                if closing and time.monotonic() > self._closed + _CLOSING_S:
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
            self._wake.wait()


def sync(run: Path, address: str | None = None, experiment: str | None = None) -> tuple[int, str]:
    """Send the waiting entries of a run that no process is training.

    Args:
        run: the run folder.
        address: tracking URI; default: the one the run has used.
        experiment: where to create the run if MLflow does not have it; default: the one it was started with.

    Returns:
        the number of entries sent, and the store's address without password.

    Raises:
        UserError: no spool there, or a copy; the run is in progress, no address to send it to, or the store does not
            answer.
    """
    if not (run / SPOOL).is_file():
        raise UserError(f"{run}: holds no {SPOOL}; give the folder of a run with tracking")
    with lock(run / LOCK, f"{run}"):
        if origin := copied_from(run):
            raise UserError(f"{run}: is a copy of {origin}; sync that, or continue this as a run of its own")
        address = address or _known_address(run)
        check_address(address)
        try:
            sender = Sender(run, address, experiment)
        except OSError as error:
            raise UserError(f"{run}: cannot be written: {error.strerror}") from None
        for attempt in range(_SYNC_ATTEMPTS):
            try:
                sender.send_waiting()
                return sender.sent, shown(address)
            except Exception as error:
                problem = sender.problem(error)
            if attempt + 1 < _SYNC_ATTEMPTS:
                time.sleep(2.0**attempt)
        raise UserError(f"{problem}; {sender.waiting()} entries of {run / SPOOL} wait")


def sync_all(run: Path, address: str | None = None, experiment: str | None = None) -> tuple[int, str]:
    """Send the waiting entries of a run and of the runs below it, whose folders are in its folder or in `trials` there.

    Args, Returns and Raises are those of `sync`, with the entries of all runs in one number.
    """
    number, store = sync(run, address, experiment)
    for spool in sorted([*run.glob(f"*/{SPOOL}"), *run.glob(f"trials/*/{SPOOL}")]):
        number += sync(spool.parent, address, experiment)[0]
    return number, store


def _known_address(run: Path) -> str:
    """Return the address that the run has used; it is stored without password, which the environment must provide."""
    store, given = Progress.of(run).store, os.environ.get("MLFLOW_TRACKING_URI", "")
    if store is None:
        raise UserError(f"{run}: does not say where to; give --uri")
    if shown(given) == store:
        return given
    if is_incomplete(store):
        raise UserError(f"{store}: passwords and tokens are not kept; give --uri or set MLFLOW_TRACKING_URI")
    return store
