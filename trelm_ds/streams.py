"""Copies beside training: a CUDA stream of their own, and every call by which the two streams wait for each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class SideStream:
    """A stream of its own on a GPU; "main" is the stream that is current in the calling thread.

    Nothing here makes the host wait. An event's `synchronize` does, and is for other threads than the one that trains.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    @contextmanager
    def use(self) -> Iterator[None]:
        """Put the work of this thread onto the side stream for a while."""
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield

    def main_reached(self) -> torch.Event:
        """Mark what the main stream has been given so far."""
        return torch.cuda.current_stream(self._device).record_event()

    def side_reached(self) -> torch.Event:
        """Mark what the side stream has been given so far."""
        return self._stream.record_event()

    def main_waits(self, event: torch.Event) -> None:
        """Let what the main stream is given from now on wait for an event."""
        torch.cuda.current_stream(self._device).wait_event(event)

    def side_waits(self, event: torch.Event) -> None:
        """Let what the side stream is given from now on wait for an event."""
        self._stream.wait_event(event)

    def used_by_main(self, tensor: torch.Tensor) -> None:
        """Keep a tensor's memory, allocated on the side stream, from reuse before the main stream has used it."""
        tensor.record_stream(torch.cuda.current_stream(self._device))


def side_stream(device: torch.device) -> SideStream | None:
    """Make a side stream on a GPU; None on other devices, which have no streams."""
    return SideStream(device) if device.type == "cuda" else None


def on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor of the CPU to `device`, where the copy waits its turn and the host does not.

    From pageable memory the host would wait for all that the GPU has been given to do. A copy to the CPU does wait: the
    host would read what has not arrived yet.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "cpu")
