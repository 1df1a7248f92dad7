"""Long-tail entities and words (paper 3.2): those that are rare in the corpus."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trelm_ds.errors import UserError


@dataclass(frozen=True)
class EntityFrequencies:
    """The E entities mentioned in the corpus, with what decides whether they may be injected.

    Attributes:
        qids: int32 [E], QID numbers, ascending.
        counts: int64 [E], mentions in the corpus.
        has_triple: bool [E], whether the knowledge graph has a triple with the entity as head or tail.
    """

    qids: np.ndarray
    counts: np.ndarray
    has_triple: np.ndarray

    @property
    def mean(self) -> float:
        """Mentions per mentioned entity; 0 for a corpus without mentions."""
        return float(self.counts.mean()) if len(self.counts) else 0.0

    def long_tail(self, threshold: int | None = None) -> np.ndarray:
        """Mark the entities mentioned fewer times than `threshold` (default: the corpus mean), bool [E]."""
        return np.asarray(self.counts < (self.mean if threshold is None else threshold))

    def lookup(self, qids: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Look up `values` [E] by QID number, int [n]; returns [n], zero (False) for entities not among the E."""
        if not len(self.qids):
            return np.zeros(len(qids), dtype=values.dtype)
        row = np.minimum(np.searchsorted(self.qids, qids), len(self.qids) - 1)
        return np.where(self.qids[row] == qids, values[row], np.zeros((), dtype=values.dtype))


def long_tail_words(
    counts: np.ndarray, low: int = 100, high: int = 500, quantiles: tuple[float, float] | None = None
) -> np.ndarray:
    """Mark the words whose corpus frequency lies in a band: rare, but frequent enough to learn something about them.

    Args:
        counts: int [W], occurrences of each distinct word.
        low, high: bounds of the band, inclusive. The defaults suit a corpus of Wikipedia's size.
        quantiles: for smaller corpora, the band as two quantiles in [0, 1] of the counts of the words that occur
            (inverted CDF, so each bound is an actual count); `low` and `high` are then ignored.

    Returns:
        bool [W]; words that do not occur are never marked.

    Raises:
        UserError: bounds in the wrong order or out of range.
    """
    counts = np.asarray(counts)
    occurs = counts > 0
    if quantiles is not None:
        if not 0 <= quantiles[0] <= quantiles[1] <= 1:
            raise UserError(f"long-tail words: quantiles must be 0 <= low <= high <= 1, got {quantiles}")
        if not occurs.any():
            return occurs
        low, high = np.quantile(counts[occurs], quantiles, method="inverted_cdf")
    elif not 0 <= low <= high:
        raise UserError(f"long-tail words: the band must be 0 <= low <= high, got {low} to {high}")
    return np.asarray(occurs & (counts >= low) & (counts <= high))
