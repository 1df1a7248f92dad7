"""A step on its way from a worker: all its tensors in one, because each would take a file descriptor and a socket."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

_ALIGNMENT = 64  # bytes


class _Place(NamedTuple):
    """Where a tensor lies in the buffer."""

    first: int
    last: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Parcel:
    """Nested lists and NamedTuples whose tensors lie in one buffer.

    Attributes:
        buffer: uint8 [n].
        content: what was packed, with places instead of tensors.
    """

    buffer: torch.Tensor
    content: Any

    @classmethod
    def of(cls, value: Any) -> Parcel:
        """Packs CPU tensors."""
        tensors: list[tuple[_Place, torch.Tensor]] = []
        size = 0

        def place(tensor: torch.Tensor) -> _Place:
            nonlocal size
            found = _Place(size, size + tensor.nbytes, tuple(tensor.shape), tensor.dtype)
            size = -(-found.last // _ALIGNMENT) * _ALIGNMENT
            tensors.append((found, tensor))
            return found

        content = _mapped(value, torch.Tensor, place)
        parcel = cls(torch.empty(size, dtype=torch.uint8), content)
        for found, tensor in tensors:
            parcel._tensor(found).copy_(tensor)
        return parcel

    def pin_memory(self) -> Parcel:
        """The same in pinned memory; torch's `DataLoader` calls it."""
        return Parcel(self.buffer.pin_memory(), self.content)

    def unpacked(self) -> Any:
        """What was packed; its tensors are views of the buffer."""
        return _mapped(self.content, _Place, self._tensor)

    def _tensor(self, place: _Place) -> torch.Tensor:
        return self.buffer[place.first : place.last].view(place.dtype).view(place.shape)


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, list):
        return [_mapped(item, kind, change) for item in value]
    return type(value)(*(_mapped(item, kind, change) for item in value)) if isinstance(value, tuple) else value
