"""Give a model that t ranks saved in parts to any other number of them, or to one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trelm_ds.checkpoints.saved_state import WEIGHT, Fragment, SavedState
from trelm_ds.model import WORD_EMBEDDING, cut, join, partition_of


def recut(
    parts: Sequence[SavedState], rank: int, degree: int, vocabulary: int, weights_only: bool = False
) -> SavedState:
    """Return what one of t ranks has of a model that another number of ranks saved in parts.

    Where their numbers agree, nothing is read. Else the parameters that were cut are put together, one after another,
    and cut anew; what this rank has of them is held in memory, all optimizer state of it too.

    Args:
        parts: of the ranks that saved, in order.
        rank: among the t.
        degree: t.
        vocabulary: V; the word embedding was padded to a multiple of their number.
        weights_only: leave out the optimizer's state.
    """
    if degree == len(parts):
        return parts[rank]
    first = parts[0]
    shapes, fragments = dict(first.shapes), dict(first.fragments)
    for name, shape in first.shapes.items():
        if (partition := partition_of(name)) is None:
            continue
        length = vocabulary if name == WORD_EMBEDDING else shape[partition.dimension] * len(parts)
        keys = [WEIGHT] if weights_only else [WEIGHT, *first.state_dtypes(name)]
        tensors = {}
        for key in keys:
            whole = join([_assemble(part, name, key) for part in parts], partition, length)
            tensors[key] = cut(whole, partition, rank, degree)
        shapes[name] = tuple(tensors[WEIGHT].shape)
        fragments[name] = [Fragment(0, {key: tensor.reshape(-1) for key, tensor in tensors.items()})]
    return replace(first, shapes=shapes, fragments=fragments)


def _assemble(part: SavedState, name: str, key: str) -> Tensor:
    """Put the fragments of a parameter, or of its state `key`, together."""
    shape = part.shapes[name]
    dtype = part.fragments[name][0].tensors[key].dtype
    whole = torch.empty(shape, dtype=dtype)
    part.copy(name, key, 0, whole.view(-1))
    return whole
