"""A linker that finds and disambiguates unlinked mentions: TAGME (Ferragina & Scaiella 2010), with known anchors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trelm_ds.corpus.documents import Document, Mention
from trelm_ds.corpus.linking.dictionary import LinkDictionary
from trelm_ds.corpus.linking.relatedness import Relatedness
from trelm_ds.corpus.linking.text import case_of, normalize
from trelm_ds.errors import UserError

_BLOCK = 32  # spots whose relatedness is computed together
_ANCHOR = -1  # phrase of a spot that is one of the document's own anchors
# TAGME drops a phrase within a longer one unless it is linked more often, here by this factor. Of 2, 3 and 5, tried by
# hand on both corpora of tools/bench/linking.py, 5 was best in articles, 2 or 3 (by 0.2 points of precision) in
# sentences.
_PART_FACTOR = 5
_DECIMALS = 6  # scores are rounded before comparison, so that the order of summation does not matter


@dataclass
class LinkingOptions:
    """Parameters of the linker.

    Attributes:
        minimum_link_probability: phrases linked in a smaller share of the documents that contain them are ignored. This
            bounds the work: most of a text's words are phrases of some entity.
        minimum_commonness: candidates with a smaller share of a phrase's links are ignored.
        maximum_candidates: candidates considered per phrase, the most common ones.
        epsilon: the most common candidate is chosen among those with at least (1 - epsilon) of the most votes: 0 uses
            votes alone, 1 commonness alone.
        window: number of spots on either side that vote.
        graph_weight: minimum relatedness of entities joined by an edge in Wikidata; 0 ignores the graph. Off by
            default: it gained nothing in articles, and in T-REx anchors are joined by an edge by construction.
        coherence_weight: rho is (1 - weight) * link probability + weight * coherence; 0.5 is TAGME's mean.
        minimum_rho: mentions with a lower rho are dropped; higher values give fewer, more precise mentions. At the
            default about seven in eight judged mentions are right in Wikipedia articles, and 98% in sentences
            (tools/bench/linking.py).
    """

    minimum_link_probability: float = 0.02
    minimum_commonness: float = 0.02
    maximum_candidates: int = 6
    epsilon: float = 0.5
    window: int = 10
    graph_weight: float = 0.0
    coherence_weight: float = 0.25
    minimum_rho: float = 0.15

    def problems(self) -> Iterator[str]:
        """Yield one line for each value out of range."""
        shares = ("minimum_link_probability", "minimum_commonness", "epsilon", "graph_weight", "coherence_weight")
        for name in (*shares, "minimum_rho"):
            if not 0 <= getattr(self, name) <= 1:
                yield f"{name}: must be between 0 and 1, got {getattr(self, name)}"
        for name in ("maximum_candidates", "window"):
            if getattr(self, name) < 1:
                yield f"{name}: must be at least 1, got {getattr(self, name)}"


class LinkedMention(NamedTuple):
    """A mention found by the linker: characters [start, end), QID number, and its scores."""

    start: int
    end: int
    qid: int
    rho: float
    link_probability: float
    coherence: float
    commonness: float


class Spot(NamedTuple):
    """An occurrence of a phrase with its candidates (entity rows, most common first) and their commonness."""

    start: int
    end: int
    phrase: int
    link_probability: float
    candidates: np.ndarray
    commonness: np.ndarray


class Linker:
    """Adds mentions to documents. Equal documents get equal mentions; time is linear in the length of the text.

    Args:
        dictionary: a folder made by `build_dictionary` and `set_link_probabilities`, or the loaded dictionary.
        options: None for the defaults.

    Raises:
        UserError: the folder is damaged or has no link probabilities, or an option is out of range.
    """

    def __init__(self, dictionary: Path | LinkDictionary, options: LinkingOptions | None = None) -> None:
        self.options = options or LinkingOptions()
        for problem in self.options.problems():
            raise UserError(f"entity linking: {problem}")
        self.dictionary = LinkDictionary.load(dictionary) if isinstance(dictionary, Path) else dictionary
        if self.dictionary.link_probability is None:
            raise UserError("entity linking: the dictionary has no link probabilities; count occurrences first")
        self._link_probability = self.dictionary.link_probability
        self._relatedness = Relatedness(self.dictionary, self.options.graph_weight)

    def link(self, document: Document) -> list[Mention]:
        """Find additional mentions, by position; none overlaps another or one of the document's own.

        The document's mentions must have QID numbers as targets.
        """
        least = self.options.minimum_rho
        return [Mention(found.start, found.end, found.qid) for found in self.score(document) if found.rho >= least]

    def score(self, document: Document) -> list[LinkedMention]:
        """Find mentions as `link` does, with scores and without the threshold `minimum_rho`.

        Filtering the result by rho equals raising `minimum_rho`.
        """
        spots = self.spots(document)
        weight = self.options.coherence_weight
        found = list[LinkedMention]()
        for spot, pick, coherent in zip(spots, *self._disambiguate(spots), strict=True):
            if spot.phrase == _ANCHOR:
                continue
            rho = round((1 - weight) * spot.link_probability + weight * coherent, _DECIMALS)
            qid = int(self.dictionary.entities[spot.candidates[pick]])
            commonness = float(spot.commonness[pick])
            found.append(LinkedMention(spot.start, spot.end, qid, rho, spot.link_probability, coherent, commonness))
        return _without_overlap(found)

    def spots(self, document: Document) -> list[Spot]:
        """Find the occurrences to consider, plus the document's anchors as certain ones; by start, longest first."""
        options, dictionary = self.options, self.dictionary
        taken = bytearray(len(document.text) + 1)
        for start, end, _ in document.mentions:
            taken[start:end] = b"\1" * (end - start)
        text = normalize(document.text)
        spots = list[Spot]()
        for first, last, phrase in dictionary.find(text.text):
            start, end = text.span(first, last)
            probability = float(self._link_probability[phrase, case_of(document.text[start:end])])
            if probability < options.minimum_link_probability or 1 in taken[start:end]:
                continue
            here = slice(*dictionary.candidate_offsets[phrase : phrase + 2].tolist())
            commonness = dictionary.commonness[here][: options.maximum_candidates]
            count = int((commonness >= options.minimum_commonness).sum()) or 1
            candidates = dictionary.candidates[here][:count]
            spots.append(Spot(start, end, phrase, probability, candidates, commonness[:count]))
        certain = np.ones(1, dtype=np.float32)
        targets = np.array([target for _, _, target in document.mentions], dtype=np.int64)
        for (start, end, _), row in zip(document.mentions, dictionary.rows_of(targets).tolist(), strict=True):
            if row >= 0:
                spots.append(Spot(start, end, _ANCHOR, 1.0, np.array([row], dtype=np.int32), certain))
        spots.sort(key=lambda spot: (spot.start, -spot.end))
        return _without_parts(spots)

    def _disambiguate(self, spots: list[Spot]) -> tuple[list[int], list[float]]:
        """Choose a candidate for every spot, and compute the coherence of that choice.

        Works in blocks. A block's coherence also depends on choices in the next block, so it lags one block behind.

        Returns:
            per spot the index of the chosen candidate, and its coherence.
        """
        chosen, coherence = [0] * len(spots), list[float]()
        waiting: _Block | None = None
        size = max(_BLOCK, self.options.window)
        for start in range(0, len(spots), size):
            block = _Block(spots, slice(start, min(start + size, len(spots))), self.options.window, self._relatedness)
            block.choose(chosen, self.options.epsilon)
            if waiting:
                coherence += waiting.coherence(chosen)
            waiting = block
        if waiting:
            coherence += waiting.coherence(chosen)
        return chosen, coherence


class _Block:
    """A block of consecutive spots with all their voters, `window` spots on either side of each.

    Spots that overlap or have the same phrase do not vote for each other.
    """

    def __init__(self, spots: list[Spot], block: slice, window: int, relatedness: Relatedness) -> None:
        first, last = max(block.start - window, 0), min(block.stop + window, len(spots))
        self.start, self.context = block.start, slice(first, last)
        near = spots[self.context]
        self.own = slice(block.start - first, block.stop - first)  # the block's spots within the context
        self.sizes = np.array([len(spot.candidates) for spot in near])
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes)])
        self.commonness = np.concatenate([spot.commonness for spot in near])
        self.probability = np.array([spot.link_probability for spot in near])
        rows, self.at = np.unique(np.concatenate([spot.candidates for spot in near]), return_inverse=True)
        self.related = relatedness.matrix(rows)
        self.voters = self._voters(near, window)

    def _voters(self, near: list[Spot], window: int) -> np.ndarray:
        """Compute who votes for whom, float64 [block, context]: 1 where the second spot votes for the first."""
        start, end, phrase = np.array([(spot.start, spot.end, spot.phrase) for spot in near]).T
        number, own = np.arange(len(near)), self.own
        close = np.abs(number[own, None] - number) <= window
        apart = (start[own, None] >= end) | (end[own, None] <= start)
        different = (phrase[own, None] != phrase) | (phrase == _ANCHOR)
        return (close & apart & different).astype(np.float64)

    def choose(self, chosen: list[int], epsilon: float) -> None:
        """Choose candidates by votes, then commonness; write them to `chosen`, which has an entry for every spot.

        A voter gives each candidate the mean, over the voter's own candidates, of relatedness times commonness.
        """
        sizes, offsets, own = self.sizes, self.offsets, self.own
        if sizes[own].max() == 1:
            return
        mine = slice(offsets[own.start], offsets[own.stop])
        weights = self.commonness / np.repeat(sizes, sizes)
        votes = np.add.reduceat(self.related[self.at[mine, None], self.at] * weights, offsets[:-1], axis=1)
        votes *= np.repeat(self.voters, sizes[own], axis=0)
        totals = np.round(votes.sum(axis=1), _DECIMALS).tolist()
        first = 0
        for number, size in enumerate(sizes[own].tolist(), self.start):
            mean = totals[first : first + size]
            least = (1 - epsilon) * max(mean)
            # Candidates are sorted by commonness, so the first with enough votes is the most common one.
            chosen[number] = next(pick for pick, vote in enumerate(mean) if vote >= least)
            first += size

    def coherence(self, chosen: list[int]) -> list[float]:
        """Compute the mean relatedness of each spot's entity to its voters', weighted by their link probability."""
        at = self.at[self.offsets[:-1] + chosen[self.context]]
        shares = self.voters * self.probability
        total = shares.sum(axis=1)
        related = (self.related[at[self.own, None], at] * shares).sum(axis=1)
        mean = np.divide(related, total, out=np.zeros_like(total), where=total > 0)
        return np.round(mean, _DECIMALS).tolist()


def _without_parts(spots: list[Spot]) -> list[Spot]:
    """Drop spots within a longer one unless their own link probability is `_PART_FACTOR` times as high."""
    kept, around = list[Spot](), list[Spot]()
    for spot in spots:
        around = [other for other in around if other.end > spot.start]
        least = spot.link_probability / _PART_FACTOR
        inside = any(other.end >= spot.end and other.link_probability >= least for other in around)
        if not inside or spot.phrase == _ANCHOR:
            kept.append(spot)
        around.append(spot)
    return kept


def _without_overlap(found: list[LinkedMention]) -> list[LinkedMention]:
    """Keep the best of overlapping mentions: higher rho, then longer, then earlier; return them by position."""
    kept = list[LinkedMention]()
    covered = set[int]()
    for mention in sorted(found, key=lambda one: (-one.rho, one.start - one.end, one.start)):
        characters = range(mention.start, mention.end)
        if covered.isdisjoint(characters):
            covered.update(characters)
            kept.append(mention)
    return sorted(kept)
