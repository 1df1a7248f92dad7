"""The long tail (paper 3.2): which entities and words are rare in the corpus."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trelm_ds.errors import UserError


@dataclass(frozen=True)
class EntityFrequencies:
    """What decides whether an entity may be injected, for the E entities that the corpus mentions.

    Attributes:
        qids: int32 [E], numbers of their QIDs, ascending.
        counts: int64 [E], mentions of each in the corpus.
        has_triple: bool [E], whether the knowledge graph has a triple of it, as head or tail.
    """

    qids: np.ndarray
    counts: np.ndarray
    has_triple: np.ndarray

    @property
    def mean(self) -> float:
        """Mentions per mentioned entity; 0 for a corpus without mentions."""
        return float(self.counts.mean()) if len(self.counts) else 0.0

    def long_tail(self, threshold: int | None = None) -> np.ndarray:
        """bool [E]: mentioned fewer times than `threshold`, by default than the corpus mean."""
        return np.asarray(self.counts < (self.mean if threshold is None else threshold))

    def of(self, qids: np.ndarray, values: np.ndarray) -> np.ndarray:
        """`values` [E] of each QID number in `qids` [n]; zero (False) for an entity that is not among the E."""
        if not len(self.qids):
            return np.zeros(len(qids), dtype=values.dtype)
        row = np.minimum(np.searchsorted(self.qids, qids), len(self.qids) - 1)
        return np.where(self.qids[row] == qids, values[row], np.zeros((), dtype=values.dtype))


def long_tail_words(
    counts: np.ndarray, low: int = 100, high: int = 500, quantiles: tuple[float, float] | None = None
) -> np.ndarray:
    """The words whose corpus frequency lies in a band: rare, but not so rare that nothing can be learned of them.

    Args:
        counts: int [W], occurrences of each distinct word.
        low, high: the band, both included. The defaults suit a corpus of Wikipedia's size.
        quantiles: for a smaller corpus, the band as two quantiles in [0, 1] of the counts of the words that occur (each
            a count that some word has); `low` and `high` then play no part.

    Returns:
        bool [W]; a word that does not occur is never chosen.

    Raises:
        UserError: a band that is empty by its bounds.
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
