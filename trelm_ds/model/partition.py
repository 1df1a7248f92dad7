"""How tensor parallelism cuts each parameter, and how its parts are put together again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trelm_ds.errors import UserError
from trelm_ds.model.encoder_config import EncoderConfig

WORD_EMBEDDING = "encoder.embeddings.word.weight"


class Partition(NamedTuple):
    """The cut of one parameter over t ranks."""

    dimension: int
    """that is cut"""
    blocks: int = 1
    """into how many equal blocks it falls, each of which is cut by itself: queries, keys and values are three"""


_PARTITIONS = {
    # Attention by heads, feed-forward by neurons, the vocabulary by words.
    r"\.attention\.qkv\.(weight|bias)": Partition(0, blocks=3),
    r"\.attention\.output\.weight": Partition(1),
    r"\.feed_forward\.(keys|key_bias|values)": Partition(0),
    re.escape(WORD_EMBEDDING): Partition(0),
}


def partition_of(name: str) -> Partition | None:
    """Return how a parameter is cut; None for one that all ranks have whole."""
    return next((cut for pattern, cut in _PARTITIONS.items() if re.search(f"{pattern}$", name)), None)


def check_degree(sizes: EncoderConfig, degree: int) -> None:
    """Check that t ranks can share the model's heads and neurons evenly; words are padded.

    Raises:
        UserError: they cannot.
    """
    for name in ("num_attention_heads", "intermediate_size"):
        if (size := getattr(sizes, name)) % degree:
            raise UserError(f"model.tensor_parallel: {degree} does not divide model.{name} {size}; choose another")


def padded(words: int, degree: int) -> int:
    """Return the least multiple of t that holds V words."""
    return -(-words // degree) * degree


def cut(whole: Tensor, partition: Partition, rank: int, degree: int) -> Tensor:
    """Return a rank's part of a parameter, contiguous.

    A single block that does not divide evenly, the vocabulary, is padded with zeros first.

    Args:
        whole: of any shape, on any device.
        rank: among the t ranks.
        degree: t.
    """
    if partition == Partition(0) and (missing := padded(len(whole), degree) - len(whole)):
        whole = F.pad(whole, (0, 0) * (whole.dim() - 1) + (0, missing))
    pieces = whole.chunk(partition.blocks * degree, partition.dimension)
    return torch.cat(pieces[rank::degree], partition.dimension)


def join(parts: Sequence[Tensor], partition: Partition, length: int) -> Tensor:
    """Put the parts of all ranks together, without padding: the inverse of `cut`.

    Args:
        parts: of ranks 0 to t - 1.
        length: size of the whole parameter in the dimension that was cut.
    """
    by_rank = [part.chunk(partition.blocks, partition.dimension) for part in parts]
    pieces = [pieces[block] for block in range(partition.blocks) for pieces in by_rank]
    return torch.cat(pieces, partition.dimension).narrow(partition.dimension, 0, length)
