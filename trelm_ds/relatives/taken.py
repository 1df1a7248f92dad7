"""The tensors of a checkpoint, taken one by one, so that none is lost unsaid."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from trelm_ds.errors import UserError
from trelm_ds.relatives.reading import Checkpoint

_EXACT_IN_FP32 = (torch.float32, torch.float16, torch.bfloat16)
Groups = tuple[tuple[re.Pattern[str], str], ...]
"""(names, what they are) of tensors that a plain encoder has no place for"""


class LayoutError(UserError):
    """The names are not this project's; the caller adds whose they may be."""


class Taken:
    """The tensors of a checkpoint, and which of them are in use, so that nothing is dropped unsaid.

    Args:
        checkpoint: as read.
        title: the project, for messages.
    """

    def __init__(self, checkpoint: Checkpoint, title: str) -> None:
        self._path, self._tensors, self._title = checkpoint.path, checkpoint.tensors, title
        self._used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def size(self, name: str, axis: int) -> int:
        """Return a size of a matrix; the tensor does not count as taken."""
        self.require([name])
        shape = self._tensors[name].shape
        if len(shape) != 2:
            raise UserError(f"{self._path}: '{name}' has shape {list(shape)}, a matrix was expected")
        return shape[axis]

    def layers(self, pattern: str) -> int:
        """Count layers, whose numbers are the group of `pattern`."""
        found = {int(match.group(1)) for name in self._tensors if (match := re.match(pattern, name))}
        return len(found)

    def take(self, names: Mapping[str, str], shapes: Mapping[str, Sequence[int]], place: str) -> dict[str, Tensor]:
        """Take tensors: {target: tensor} in fp32 for {target: name}.

        Args:
            names: name in the checkpoint by target.
            shapes: shape by target.
            place: what says the shapes, for messages.
        """
        self.require(names.values())
        return {target: self.one(name, shapes[target], place) for target, name in names.items()}

    def one(self, name: str, shape: Sequence[int], place: str) -> Tensor:
        """Take one tensor in fp32, which holds every value of fp16 and bf16."""
        self.require([name])
        tensor = self._tensors[name]
        if list(tensor.shape) != list(shape):
            raise UserError(
                f"{self._path}: '{name}' has shape {list(tensor.shape)}, {place} says {list(shape)}; they do not "
                "belong together"
            )
        if tensor.dtype not in _EXACT_IN_FP32 or tensor.is_quantized or tensor.layout != torch.strided:
            raise UserError(f"{self._path}: '{name}' is {tensor.dtype}; save it as fp32, fp16 or bf16")
        self._used.add(name)
        return tensor.detach().to(torch.float32).contiguous()

    def drop_copy(self, name: str, twin: str) -> None:
        """Leave out a second copy of a tied tensor; check that it is one."""
        if name in self._tensors and twin in self._tensors:
            copy, tensor = self._tensors[name], self._tensors[twin]
            if copy.dtype != tensor.dtype or not torch.equal(copy, tensor):
                raise UserError(
                    f"{self._path}: '{name}' differs from '{twin}'; only tied decoders have a place in a plain encoder"
                )
            self._used.add(name)

    def ignore(self, pattern: str) -> None:
        """Leave out buffers that hold no weights, such as the numbers of the positions."""
        self._used.update(name for name in self._tensors if re.search(pattern, name))

    def left(self) -> dict[str, Tensor]:
        """Return what was not taken."""
        return {name: tensor for name, tensor in self._tensors.items() if name not in self._used}

    def refuse_unknown(self, inside: Sequence[str], known: Groups) -> None:
        """Refuse tensors of the encoder that were not taken: without them it would compute something else.

        Args:
            inside: what the names of the encoder's tensors begin with.
            known: what may be left behind.

        Raises:
            LayoutError: there is one.
        """
        odd = [
            name
            for name in self.left()
            if name.startswith(tuple(inside)) and not any(pattern.search(name) for pattern, _ in known)
        ]
        if odd:
            more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
            raise LayoutError(f"{self._path}: '{min(odd)[:120]}'{more} is unknown in {self._title}'s encoder")

    def require(self, names: Iterable[str]) -> None:
        """Check that there are tensors of these names.

        Raises:
            LayoutError: one is missing.
        """
        missing = [name for name in names if name not in self._tensors]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise LayoutError(f"{self._path}: lacks '{missing[0]}'{more}, which {self._title}'s checkpoints have")
