"""Selection of the mentions that get knowledge: the important ones (paper 3.1), by any strategy of Figure 3.

Figure 3 compares injection into long-tail entities only, high-frequency entities only, and both. So the strategies
differ in the condition on frequency and in nothing else:

long_tail        mentioned in the corpus fewer times than `entity_threshold` (None: the corpus mean)
high_frequency   at or above it
all              any
none             nothing is selected

Each requires at least one triple (there is nothing to inject otherwise), the same bar of importance and the same
`max_per_sequence`. The bar is one cosine for all strategies: `quantile` of the corpus's scored long-tail mentions with
a triple lie at or below it, ties included. `max_per_sequence` keeps the most important mentions, ties by position.
Without scores there is no bar, and the limit keeps the rarest entities, ties by position. Before the limit, `all` is
the union of long_tail and high_frequency.
"""

from __future__ import annotations

from typing import get_args

import numpy as np

from trelm_ds.config import SelectionConfig, Strategy
from trelm_ds.knowledge.long_tail import EntityFrequencies

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
BINS = 1 << 16


class MentionSelector:
    """Selects mentions as a pure function of its arguments, so any number of loader processes agree.

    Args:
        selection: checked settings; changing them needs no new `trelm prepare`. `importance` is not used here.
        frequencies: corpus frequencies of the entities.
        bar: largest cosine of an important mention (`cosine_bar`); None where there are no scores.
    """

    def __init__(self, selection: SelectionConfig, frequencies: EntityFrequencies, bar: float | None) -> None:
        self.selection, self.bar = selection, bar
        self._frequencies = frequencies
        self._eligible = frequencies.has_triple & _by_frequency(selection, frequencies)

    @property
    def entities(self) -> np.ndarray:
        """QID numbers of all entities whose mentions may be selected, int32 [n], ascending."""
        return self._frequencies.qids[self._eligible]

    def __call__(self, mentions: np.ndarray, cosines: np.ndarray | None = None) -> np.ndarray:
        """Mark the selected mentions of any number of sequences, bool [M].

        Args:
            mentions: int [M, 4]: sequence, first token, last token + 1, QID number; in order, as in a block. For a
                single sequence the first column may be any constant.
            cosines: float16 [M], NaN where not scored; required exactly if there is a bar.
        """
        assert (cosines is None) == (self.bar is None), "scores and the bar found among them belong together"
        qids = mentions[:, 3]
        chosen = self._frequencies.lookup(qids, self._eligible)
        if cosines is None:
            priority = self._frequencies.lookup(qids, self._frequencies.counts)
        else:
            priority = cosines
            chosen = chosen & (cosines <= np.float16(self.bar))  # False for NaN
        return _at_most(self.selection.max_per_sequence, mentions[:, 0], chosen, priority)


def _by_frequency(selection: SelectionConfig, frequencies: EntityFrequencies) -> np.ndarray:
    """Mark the entities that meet the strategy's condition on frequency, bool [E]."""
    assert selection.strategy in STRATEGIES, selection.strategy
    if selection.strategy in ("all", "none"):
        return np.full(len(frequencies.qids), selection.strategy == "all")
    rare = frequencies.long_tail(selection.entity_threshold)
    return rare if selection.strategy == "long_tail" else ~rare


def _at_most(limit: int, sequences: np.ndarray, chosen: np.ndarray, priority: np.ndarray) -> np.ndarray:
    """Keep the `limit` chosen mentions of each sequence with the lowest priority values, ties by position; bool [M]."""
    candidates = np.flatnonzero(chosen)
    order = candidates[np.lexsort((candidates, priority[candidates], sequences[candidates]))]
    owner = sequences[order]
    kept = np.zeros(len(chosen), dtype=bool)
    kept[order[np.arange(len(order)) - np.searchsorted(owner, owner) < limit]] = True
    return kept


def semantic_importance(cosines: np.ndarray) -> np.ndarray:
    """Compute SI = 1 / cos (Eq. 1), of any shape; +inf for cos <= 0, which 1 - cos ranks highest too; NaN stays NaN."""
    values = np.asarray(cosines, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.where(values <= 0, np.inf, 1 / values)


def cosine_histogram(cosines: np.ndarray, times: np.ndarray | None = None) -> np.ndarray:
    """Count every float16 value except NaN: int64 [65536], in ascending order of the values.

    Args:
        cosines: float16 [M].
        times: int [M], weight of each value; None: 1.
    """
    known = ~np.isnan(cosines)
    bits = (cosines[known] + np.float16(0)).view(np.uint16).astype(np.int64)  # -0 becomes 0
    places = np.where(bits & 0x8000, 0xFFFF - bits, bits | 0x8000)  # sign-magnitude to ascending order
    return np.bincount(places, None if times is None else times[known], minlength=BINS).astype(np.int64)


def histogram_values() -> np.ndarray:
    """Return the value of each bin of `cosine_histogram`, float16 [65536]."""
    places = np.arange(BINS)
    return np.where(places & 0x8000, places ^ 0x8000, 0xFFFF - places).astype(np.uint16).view(np.float16)


def cosine_bar(histogram: np.ndarray, quantile: float) -> float:
    """Find the exact largest cosine among the top `quantile` by 1 - cos.

    Args:
        histogram: int [65536], as `cosine_histogram` returns it.
        quantile: in (0, 1].

    Returns:
        the smallest float16 value at or below which at least `quantile` of the values lie; -inf for an empty histogram.
    """
    below = np.cumsum(histogram)
    if not below[-1]:
        return float("-inf")
    return float(histogram_values()[np.searchsorted(below, quantile * below[-1])])
