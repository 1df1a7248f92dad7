"""Ragged arrays: concatenated rows of different lengths, `tokens` [n] with `offsets` int64 [rows + 1]."""

from __future__ import annotations

import numpy as np


def offsets_of(length: np.ndarray) -> np.ndarray:
    """Compute the offsets, int64 [n + 1], of rows with these lengths [n]."""
    offsets = np.zeros(len(length) + 1, dtype=np.int64)
    np.cumsum(length, out=offsets[1:])
    return offsets


def spread(first: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Concatenate the ranges first[i], ..., first[i] + length[i] - 1 of all i into one index array, int64."""
    ends = np.cumsum(length)
    return np.repeat(first - (ends - length), length) + np.arange(int(length.sum()))


def gather(offsets: np.ndarray, tokens: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Select rows, in any order and with repetitions.

    Args:
        offsets: int64 [N + 1].
        tokens: [T], may be memory-mapped: only the selected rows are read.
        rows: int [n].

    Returns:
        the concatenated tokens of `rows`, and the rows' lengths int64 [n].
    """
    first = offsets[rows]
    length = offsets[rows + 1] - first
    return tokens[spread(first, length)], length
