"""A step on its way from a worker: all its tensors in one buffer, because each would take a file descriptor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from trelm_ds.model import map_tensors

_ALIGNMENT = 64  # bytes


class _Place(NamedTuple):
    """Where a tensor lies in the buffer."""

    first: int
    last: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class FlatBuffer:
    """Nested lists, dicts and NamedTuples whose tensors lie in one buffer.

    Attributes:
        buffer: uint8 [n].
        content: what was packed, with places instead of tensors.
    """

    buffer: torch.Tensor
    content: Any

    @classmethod
    def of(cls, value: Any) -> FlatBuffer:
        """Pack CPU tensors."""
        tensors: list[tuple[_Place, torch.Tensor]] = []
        size = 0

        def place(tensor: torch.Tensor) -> _Place:
            nonlocal size
            found = _Place(size, size + tensor.nbytes, tuple(tensor.shape), tensor.dtype)
            size = -(-found.last // _ALIGNMENT) * _ALIGNMENT
            tensors.append((found, tensor))
            return found

        content = map_tensors(value, place)
        packed = cls(torch.empty(size, dtype=torch.uint8), content)
        for found, tensor in tensors:
            packed._tensor(found).copy_(tensor)
        return packed

    def pin_memory(self) -> FlatBuffer:
        """Copy to pinned memory; torch's `DataLoader` calls this."""
        return FlatBuffer(self.buffer.pin_memory(), self.content)

    def unpacked(self) -> Any:
        """Return what was packed; its tensors are views of the buffer."""
        return map_tensors(self.content, self._tensor, _Place)

    def _tensor(self, place: _Place) -> torch.Tensor:
        return self.buffer[place.first : place.last].view(place.dtype).view(place.shape)
