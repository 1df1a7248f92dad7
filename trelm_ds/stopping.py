"""What asks a run to stop before its last step: signals, a time limit, a file. Acted on between two steps."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
STOP_FILE = "stop"  # in the run folder
TIME, FILE, ORPHANED = 1000, 1001, 1002  # reasons beside the signals' numbers
# EX_TEMPFAIL: run it again; as if interrupted from the keyboard; as if the terminal had gone
_EXIT_CODES = {TIME: 75, FILE: 130, ORPHANED: 128 + signal.SIGHUP}


class StopSignals:
    """Notes SIGINT, SIGTERM and SIGUSR1 instead of dying of them; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in ASKING:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number


class StopRequests:
    """Whether this rank knows of a reason to stop.

    Args:
        signals: noted ones.
        run: the run folder; a file `stop` in it is a request, and is taken away.
        max_minutes: of this process; None for no limit.
        looks_for_file: whether this rank does, one of all.
    """

    def __init__(self, signals: StopSignals, run: Path, max_minutes: float | None, looks_for_file: bool) -> None:
        self._signals, self._file = signals, run / STOP_FILE if looks_for_file else None
        self._until = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        # torchrun's number, which ends its ranks when it ends, unless it is killed.
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    def reason(self) -> int:
        """A signal's number, FILE, TIME, ORPHANED, or 0; the largest of all ranks' counts."""
        if self._file is not None and self._file.is_file():
            with contextlib.suppress(OSError):
                self._file.unlink()
            self._file, self._signals.received = None, FILE
        if self._signals.received:
            return self._signals.received
        if self._launcher not in (None, os.getppid()):
            return ORPHANED
        return TIME if self._until is not None and time.monotonic() >= self._until else 0


def exit_code(reason: int) -> int:
    """128 + the signal's number; 75 at the time limit, 130 by the stop file, 129 where the launcher is gone."""
    return _EXIT_CODES.get(reason, 128 + reason)


def describe(reason: int) -> str:
    """For people: by what a run was stopped."""
    words = {TIME: "trainer.max_minutes", FILE: f"the file {STOP_FILE!r}", ORPHANED: "the end of its launcher"}
    return words.get(reason, f"signal {reason}")
