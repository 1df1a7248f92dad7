"""Tokens that compete with the answers of facts (Eq. 2)."""

from __future__ import annotations

import numpy as np

from trelm_ds.keyed_random import Stream, keyed_uniform

_POWER = 0.75


class Negatives:
    """Draws tokens by Q = frequency^0.75: the same on every rank.

    Args:
        token_counts: int64 [V], occurrences of each token in the corpus.
        special: ids that are never drawn.
        count: tokens of a step.
    """

    def __init__(self, token_counts: np.ndarray, special: tuple[int, ...], count: int, seed: int) -> None:
        weights = np.asarray(token_counts, dtype=np.float64) ** _POWER
        weights[list(special)] = 0
        if not weights.any():  # an empty corpus
            weights[:] = 1
        self._exact = weights / weights.sum()
        self._below = np.cumsum(self._exact)
        self._count, self._seed = count, seed

    @property
    def probabilities(self) -> np.ndarray:
        """Q, float32 [V]."""
        return self._exact.astype(np.float32)

    def __call__(self, step: int) -> np.ndarray:
        """Draw the tokens of a step: int64 [count], among which one may come up several times."""
        draw = keyed_uniform(self._seed, Stream.NEGATIVE, step, np.arange(self._count)) * self._below[-1]
        return np.searchsorted(self._below, draw, side="right")
