"""Micro-batches on their way to the device, each while the one before it computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from trelm_ds.model import Batch, map_tensors
from trelm_ds.streams import SideStream, side_stream


class _Copy(NamedTuple):
    batch: Batch
    done: torch.Event


class DevicePrefetcher:
    """Copies micro-batches to a device.

    On a GPU the copy of the next one is under way on a stream of its own before the current one is handed out; the
    loader has pinned their memory, so the host waits for none. Elsewhere each is copied when it is asked for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._side = device, side_stream(device)

    def __call__(self, stored: Sequence[Batch]) -> Iterator[Batch]:
        """Yield the batches on the device, in order; at most two are there because of this."""
        if self._side is None:
            yield from (batch.to(self._device) for batch in stored)
            return
        ahead = self._start(stored[0], self._side) if stored else None
        for following in (*stored[1:], None):
            if ahead is None:
                return
            current, ahead = ahead, None if following is None else self._start(following, self._side)
            self._hand_over(current, self._side)
            yield current.batch

    def _start(self, batch: Batch, side: SideStream) -> _Copy:
        with side.use():
            return _Copy(batch.to(self._device), side.side_reached())

    def _hand_over(self, copy: _Copy, side: SideStream) -> None:
        side.main_waits(copy.done)

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.device.type == self._device.type:  # some stay on the host
                side.used_by_main(tensor)
            return tensor

        map_tensors(copy.batch, keep)
