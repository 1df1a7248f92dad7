"""Show progress of long work: a rich bar on a terminal, log lines elsewhere (log files, Slurm output)."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from trelm_ds import log

T = TypeVar("T")

PLAIN_LINE_EVERY_S = 10.0


class ProgressBar:
    """Counts finished units of work, of a known or unknown total.

    Args:
        description: what is being done, shown in front.
        total: number of units; None if unknown.
        initial: units done before, as in a resumed run.
        enabled: False shows nothing, as on ranks other than 0.
    """

    def __init__(self, description: str, total: int | None, initial: int = 0, enabled: bool = True) -> None:
        self.description, self.total, self.completed = description, total, initial
        self._told, self._enabled, self._note = initial, enabled, ""
        self._started = self._printed = time.monotonic()
        self._rich: Progress | None = None
        if enabled and sys.stderr is not None and sys.stderr.isatty():
            self._rich = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._task = self._rich.add_task(description, total=total, completed=initial, note="")

    def __enter__(self) -> Self:
        if self._rich:
            self._rich.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._rich:
            with contextlib.suppress(OSError):
                self._rich.stop()
        elif self._enabled and self.completed > self._told:
            self._print_line()

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count `units` more, and show `note` (a loss, a rate) beside them."""
        self.completed += units
        self._note = note or self._note
        if self._rich:
            with contextlib.suppress(OSError):  # the terminal may be gone
                self._rich.update(self._task, completed=self.completed, note=self._note)
        elif self._enabled and time.monotonic() - self._printed >= PLAIN_LINE_EVERY_S:
            self._print_line()

    def _print_line(self) -> None:
        self._printed, self._told = time.monotonic(), self.completed
        elapsed = self._printed - self._started
        of_total = f"/{self.total}" if self.total is not None else ""
        line = f"{self.description}: {self.completed}{of_total} in {elapsed:.0f} s"
        log.info(f"{line}  {self._note}" if self._note else line)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield `items`, showing how many have been consumed."""
    with ProgressBar(description, total) as bar:
        for item in items:
            yield item
            bar.advance()
