"""Stop a run early, between two steps: on a signal, at a time limit, by a stop file, or when its launcher has died."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT)
STOP_FILE = "stop"  # in the run folder
TIME, FILE, ORPHANED = 1000, 1001, 1002  # reasons, beside the numbers of signals
# 75 is EX_TEMPFAIL (run it again), 130 is what Ctrl-C gives, 129 what a closed terminal gives.
_EXIT_CODES = {TIME: 75, FILE: 130, ORPHANED: 128 + signal.SIGHUP}


class StopSignals:
    """Within it, the signals that ask for an end are recorded instead of ending the process.

    A second SIGINT raises KeyboardInterrupt at once. A signal that is ignored, as SIGHUP under nohup, stays so.

    Attributes:
        received: number of the last signal; 0 before any.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number


class StopRequests:
    """Tells whether this rank has a reason to stop. The ranks decide together: the largest reason counts.

    Args:
        signals: the signals received by this process.
        run: the run folder; a file named `stop` in it is a request to stop.
        max_minutes: limit from now on; None for no limit.
        watch_file: look for the file; true on one rank only.
    """

    def __init__(self, signals: StopSignals, run: Path, max_minutes: float | None, watch_file: bool) -> None:
        self._signals, self._file = signals, run / STOP_FILE if watch_file else None
        self._until = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        # torchrun stops its ranks when it ends, but cannot when it is killed; then this process gets another parent.
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    def reason(self) -> int:
        """Return a signal's number, FILE, TIME or ORPHANED; 0 without a reason to stop."""
        if self._file is not None and self._file.is_file():
            return FILE
        if self._signals.received:
            return self._signals.received
        if self._launcher not in (None, os.getppid()):
            return ORPHANED
        return TIME if self._until is not None and time.monotonic() >= self._until else 0

    def answered(self) -> None:
        """Delete the stop file: the run has ended as it asked. Not earlier, or a crash on the way would forget it."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)


def exit_code(reason: int) -> int:
    """Return the exit code for a reason: 128 + signal, 75 at the time limit, 130 by stop file, 129 without launcher."""
    return _EXIT_CODES.get(reason, 128 + reason)


def describe(reason: int) -> str:
    """Say what stopped a run, as a noun phrase for users."""
    words = {TIME: "trainer.max_minutes", FILE: f"the file {STOP_FILE!r}", ORPHANED: "the end of its launcher"}
    return words.get(reason, f"signal {reason}")
