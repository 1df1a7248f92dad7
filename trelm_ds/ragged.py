"""Ragged arrays: rows of different lengths one after another, `tokens` [n] with `offsets` int64 [rows + 1]."""

from __future__ import annotations

import numpy as np


def offsets_of(length: np.ndarray) -> np.ndarray:
    """int64 [n + 1]: where rows of these lengths [n] begin, and the end of the last."""
    offsets = np.zeros(len(length) + 1, dtype=np.int64)
    np.cumsum(length, out=offsets[1:])
    return offsets


def spread(first: np.ndarray, length: np.ndarray) -> np.ndarray:
    """int64: the indices first[i], first[i] + 1, ... of all i, `length[i]` each."""
    ends = np.cumsum(length)
    return np.repeat(first - (ends - length), length) + np.arange(int(length.sum()))


def gather(offsets: np.ndarray, tokens: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Some rows, in any order and as often as they are asked for.

    Args:
        offsets: int64 [N + 1].
        tokens: [T], may be memory-mapped: only what is asked for is read.
        rows: int [n].

    Returns:
        the tokens of all `rows` one after another, and their lengths int64 [n].
    """
    first = offsets[rows]
    length = offsets[rows + 1] - first
    return tokens[spread(first, length)], length
