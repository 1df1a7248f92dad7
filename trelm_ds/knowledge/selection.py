"""Which mentions get knowledge: the important ones (paper 3.1), by any strategy of Figure 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from trelm_ds.errors import UserError
from trelm_ds.knowledge.long_tail import EntityFrequencies

Strategy = Literal["long_tail", "high_frequency", "all", "none"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
BINS = 1 << 16


@dataclass(frozen=True)
class Selection:
    """How to choose mentions; changing it needs no new `trelm prepare`.

    Figure 3 compares injection into long-tail entities only, high-frequency entities only, and both. So the strategies
    differ in the condition on frequency and in nothing else: each asks for at least one triple (there is nothing to
    inject otherwise), for the same bar of importance (one cosine for all strategies, found by `quantile` among the
    long-tail mentions) and for the same `max_per_sequence`. Before that last limit `all` is the union of the two.

    Attributes:
        strategy: long_tail (frequency below the threshold), high_frequency (at or above it), all (any), none.
        entity_threshold: mentions in the corpus below which an entity is long-tail; None: the corpus mean.
        quantile: share, in (0, 1], of the corpus's scored long-tail mentions with a triple that count as important,
            those with the highest 1 - cos; ties at the bar are all in. Plays no part where there are no scores.
        max_per_sequence: mentions chosen in one sequence at most: the most important first, ties by position. Without
            scores the rarest entity in the corpus first, ties by position.

    Raises:
        UserError: a value out of range.
    """

    strategy: Strategy = "long_tail"
    entity_threshold: int | None = None
    quantile: float = 0.5
    max_per_sequence: int = 8

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise UserError(f"strategy: must be one of {', '.join(STRATEGIES)}, got '{self.strategy}'")
        if self.entity_threshold is not None and self.entity_threshold < 1:
            raise UserError(f"entity_threshold: must be at least 1, got {self.entity_threshold}")
        if not 0 < self.quantile <= 1:
            raise UserError(f"quantile: must be above 0 and at most 1, got {self.quantile}")
        if self.max_per_sequence < 1:
            raise UserError(f"max_per_sequence: must be at least 1, got {self.max_per_sequence}")


class MentionSelector:
    """Says which mentions are chosen: a pure function of its arguments, fit for any number of loader processes.

    Args:
        selection: what to choose.
        frequencies: of the corpus's entities.
        bar: largest cosine of an important mention (`cosine_bar`); None: there are no scores.
    """

    def __init__(self, selection: Selection, frequencies: EntityFrequencies, bar: float | None) -> None:
        self.selection, self.bar = selection, bar
        self._frequencies = frequencies
        self._eligible = frequencies.has_triple & _by_frequency(selection, frequencies)

    @property
    def entities(self) -> np.ndarray:
        """int32 [n]: numbers of the QIDs, ascending, of all entities whose mentions may be chosen."""
        return self._frequencies.qids[self._eligible]

    def __call__(self, mentions: np.ndarray, cosines: np.ndarray | None = None) -> np.ndarray:
        """Chooses among the mentions of any number of sequences.

        Args:
            mentions: int [M, 4]: sequence, first token, last token + 1, number of the entity's QID; in order (a
                block's mentions). For a single sequence the first column may be any constant.
            cosines: float16 [M], NaN where not scored; to be given exactly when there is a bar.

        Returns:
            bool [M].
        """
        assert (cosines is None) == (self.bar is None), "scores and the bar found among them belong together"
        qids = mentions[:, 3]
        chosen = self._frequencies.of(qids, self._eligible)
        if cosines is None:
            priority = self._frequencies.of(qids, self._frequencies.counts)
        else:
            priority = cosines
            chosen = chosen & (cosines <= np.float16(self.bar))  # False for NaN
        return _at_most(self.selection.max_per_sequence, mentions[:, 0], chosen, priority)


def _by_frequency(selection: Selection, frequencies: EntityFrequencies) -> np.ndarray:
    """bool [E]: the condition on frequency of each strategy."""
    if selection.strategy in ("all", "none"):
        return np.full(len(frequencies.qids), selection.strategy == "all")
    rare = frequencies.long_tail(selection.entity_threshold)
    return rare if selection.strategy == "long_tail" else ~rare


def _at_most(limit: int, sequences: np.ndarray, chosen: np.ndarray, priority: np.ndarray) -> np.ndarray:
    """Keeps `limit` of the chosen mentions of each sequence: those of the lowest priority value, ties by position."""
    candidates = np.flatnonzero(chosen)
    order = candidates[np.lexsort((candidates, priority[candidates], sequences[candidates]))]
    owner = sequences[order]
    kept = np.zeros(len(chosen), dtype=bool)
    kept[order[np.arange(len(order)) - np.searchsorted(owner, owner) < limit]] = True
    return kept


def semantic_importance(cosines: np.ndarray) -> np.ndarray:
    """SI = 1 / cos (Eq. 1), of any shape; +inf for cos <= 0, which 1 - cos ranks on top as well; NaN stays."""
    values = np.asarray(cosines, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.where(values <= 0, np.inf, 1 / values)


def cosine_histogram(cosines: np.ndarray, times: np.ndarray | None = None) -> np.ndarray:
    """Counts of every float16 value, NaN left out: int64 [65536], in ascending order of the values.

    Args:
        cosines: float16 [M].
        times: int [M], how often each counts; None: once.
    """
    known = ~np.isnan(cosines)
    bits = (cosines[known] + np.float16(0)).view(np.uint16).astype(np.int64)  # -0 becomes 0
    places = np.where(bits & 0x8000, 0xFFFF - bits, bits | 0x8000)
    return np.bincount(places, None if times is None else times[known], minlength=BINS).astype(np.int64)


def histogram_values() -> np.ndarray:
    """float16 [65536]: the value of each bin of `cosine_histogram`."""
    places = np.arange(BINS)
    return np.where(places & 0x8000, places ^ 0x8000, 0xFFFF - places).astype(np.uint16).view(np.float16)


def cosine_bar(histogram: np.ndarray, quantile: float) -> float:
    """The largest cosine of the top `quantile` by 1 - cos, exactly.

    Args:
        histogram: int [65536] of `cosine_histogram`.
        quantile: in (0, 1].

    Returns:
        the smallest float16 value at or below which at least `quantile` of the values lie; -inf where there are none.
    """
    below = np.cumsum(histogram)
    if not below[-1]:
        return float("-inf")
    return float(histogram_values()[np.searchsorted(below, quantile * below[-1])])
