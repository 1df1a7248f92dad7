"""Copies to and from a device, by the calls that they make."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trelm_ds.streams import on_device


class Noted:
    """A tensor on a device that may not be here; notes what is asked of it."""

    def __init__(self, device: str) -> None:
        self.device, self.calls = torch.device(device), list[Any]()

    def pin_memory(self) -> Noted:
        self.calls.append("pinned")
        return self

    def to(self, device: torch.device, non_blocking: bool) -> Noted:
        self.calls.append((device.type, "runs on" if non_blocking else "waits"))
        return self


@pytest.mark.parametrize(
    ("place", "device", "calls"),
    [
        ("cpu", "cuda", ["pinned", ("cuda", "runs on")]),
        ("cuda", "cuda", [("cuda", "runs on")]),
        # torch would copy into pinned memory and return before anything is there: a memory bank on the CPU
        # (memory.placement) would learn from whatever that memory held.
        ("cuda", "cpu", [("cpu", "waits")]),
        ("cpu", "cpu", [("cpu", "waits")]),
    ],
)
def test_who_waits_for_a_copy(place: str, device: str, calls: list[Any]) -> None:
    tensor = Noted(place)
    on_device(tensor, torch.device(device))  # type: ignore[arg-type]
    assert tensor.calls == calls
