"""A stand-in for a CUDA stream, which runs at once and writes down in which order it was called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import Any

import torch

from trelm_ds.streams import SideStream


class NotedEvent:
    """An event with a name; waiting for it is noted."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self._notes = name, notes

    def synchronize(self) -> None:
        self._notes.append(f"{thread()} host waits for {self.name}")


class NotedStream(SideStream):
    """Notes every call; `on` tells whether this thread's work goes to the side stream now."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.kept: list[torch.Tensor] = []
        self.on = False
        self._events = 0

    @contextmanager
    def use(self) -> Iterator[None]:
        self.on = True
        try:
            yield
        finally:
            self.on = False

    def _event(self, place: str) -> Any:
        self._events += 1
        self.notes.append(f"{thread()} marks {place} {self._events}")
        return NotedEvent(f"{place} {self._events}", self.notes)

    def main_reached(self) -> Any:
        return self._event("main")

    def side_reached(self) -> Any:
        return self._event("side")

    def main_waits(self, event: Any) -> None:
        assert not self.on
        self.notes.append(f"{thread()} main waits for {event.name}")

    def side_waits(self, event: Any) -> None:
        self.notes.append(f"{thread()} side waits for {event.name}")

    def used_by_main(self, tensor: torch.Tensor) -> None:
        assert not self.on
        self.kept.append(tensor)


def thread() -> str:
    return "trainer:" if current_thread() is main_thread() else "writer:"
