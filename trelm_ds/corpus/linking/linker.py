"""Finds and disambiguates mentions that nobody linked: TAGME (Ferragina & Scaiella 2010) with known anchors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trelm_ds.corpus.documents import Document, Mention
from trelm_ds.corpus.linking.dictionary import LinkDictionary
from trelm_ds.corpus.linking.relatedness import Relatedness, gather
from trelm_ds.corpus.linking.text import case_of, normalize
from trelm_ds.errors import UserError

_BLOCK = 32  # spots whose relatedness is computed in one go
_ANCHOR = -1  # phrase of a spot that is one of the document's own anchors
_DECIMALS = 6  # scores are compared after rounding, so that the order of a sum does not decide


@dataclass
class LinkingOptions:
    """How the linker decides.

    Attributes:
        minimum_link_probability: phrases linked more rarely than in this share of the documents that hold them are not
            looked at. It bounds the work: most of a text's words are phrases of some entity.
        minimum_commonness: share of a phrase's links below which a candidate is not considered.
        maximum_candidates: candidates considered per phrase, the most common ones.
        epsilon: among candidates with at least (1 - epsilon) of the most votes the most common one is chosen: 0 trusts
            votes alone, 1 commonness alone.
        window: spots on either side that vote.
        graph_weight: relatedness that an edge in Wikidata is worth at least; 0 leaves the graph out.
        minimum_rho: mentions whose mean of link probability and coherence is below are dropped. Higher: fewer, surer.
    """

    minimum_link_probability: float = 0.05
    minimum_commonness: float = 0.02
    maximum_candidates: int = 6
    epsilon: float = 0.3
    window: int = 10
    graph_weight: float = 0.0
    minimum_rho: float = 0.3

    def problems(self) -> Iterator[str]:
        """What is wrong with the values, one line each."""
        for name in ("minimum_link_probability", "minimum_commonness", "epsilon", "graph_weight", "minimum_rho"):
            if not 0 <= getattr(self, name) <= 1:
                yield f"{name}: must be between 0 and 1, got {getattr(self, name)}"
        for name in ("maximum_candidates", "window"):
            if getattr(self, name) < 1:
                yield f"{name}: must be at least 1, got {getattr(self, name)}"


class LinkedMention(NamedTuple):
    """A mention found by the linker: characters [start, end), QID number, and why."""

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
        options: see there.

    Raises:
        UserError: a damaged folder, one without link probabilities, or an option out of its range.
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
        """The additional mentions in order of appearance; none overlaps another or one that is there already.

        The document's mentions need QID numbers as targets.
        """
        least = self.options.minimum_rho
        return [Mention(found.start, found.end, found.qid) for found in self.score(document) if found.rho >= least]

    def score(self, document: Document) -> list[LinkedMention]:
        """As `link` with `minimum_rho` 0, with scores: filtering by rho gives what a higher `minimum_rho` would."""
        spots = self.spots(document)
        chosen = self._choose(spots)
        coherence = self._coherence(spots, chosen)
        found = list[LinkedMention]()
        for spot, pick, coherent in zip(spots, chosen, coherence.tolist(), strict=True):
            if spot.phrase == _ANCHOR:
                continue
            rho = round((spot.link_probability + coherent) / 2, _DECIMALS)
            qid = int(self.dictionary.entities[spot.candidates[pick]])
            commonness = float(spot.commonness[pick])
            found.append(LinkedMention(spot.start, spot.end, qid, rho, spot.link_probability, coherent, commonness))
        return _without_overlap(found)

    def spots(self, document: Document) -> list[Spot]:
        """Occurrences worth looking at, and the document's anchors as certain ones, in order of start, then -end."""
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

    def _choose(self, spots: list[Spot]) -> list[int]:
        """For every spot the number of the candidate chosen by votes, then commonness.

        A voter gives a candidate the mean over its own candidates of relatedness times commonness. Spots that overlap or
        hold the same phrase do not vote for each other.
        """
        chosen = [0] * len(spots)
        if not any(len(spot.candidates) > 1 for spot in spots):
            return chosen
        sizes = np.array([len(spot.candidates) for spot in spots])
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        rows = np.concatenate([spot.candidates for spot in spots])
        weights = np.concatenate([spot.commonness for spot in spots]) / np.repeat(sizes, sizes)
        owner = np.repeat(np.arange(len(spots)), sizes)
        for block, context in self._blocks(len(spots)):
            mine = slice(offsets[block.start], offsets[block.stop])
            theirs = slice(offsets[context.start], offsets[context.stop])
            distinct, at = np.unique(rows[theirs], return_inverse=True)
            own = at[mine.start - theirs.start : mine.stop - theirs.start]
            related = self._relatedness.matrix(distinct)[own[:, None], at]
            votes = np.add.reduceat(related * weights[theirs], offsets[context] - theirs.start, axis=1)
            votes *= self._voters(spots, block, context)[owner[mine] - block.start]
            totals = np.round(votes.sum(axis=1), _DECIMALS).tolist()
            for number in range(block.start, block.stop):
                first = offsets[number] - mine.start
                chosen[number] = self._best(totals[first : first + sizes[number]])
        return chosen

    def _best(self, votes: list[float]) -> int:
        """The first candidate, they are sorted by commonness, with at least (1 - epsilon) of the most votes."""
        least = (1 - self.options.epsilon) * max(votes)
        return next(number for number, vote in enumerate(votes) if vote >= least)

    def _coherence(self, spots: list[Spot], chosen: list[int]) -> np.ndarray:
        """float64 [S]: mean relatedness of each spot's entity to those of its voters, weighted by link probability."""
        coherence = np.zeros(len(spots))
        rows = np.array([spot.candidates[pick] for spot, pick in zip(spots, chosen, strict=True)], dtype=np.int64)
        weights = np.array([spot.link_probability for spot in spots])
        for block, context in self._blocks(len(spots)):
            distinct, at = np.unique(rows[context], return_inverse=True)
            own = at[block.start - context.start : block.stop - context.start]
            shares = self._voters(spots, block, context) * weights[context]
            total = shares.sum(axis=1)
            related = (self._relatedness.matrix(distinct)[own[:, None], at] * shares).sum(axis=1)
            coherence[block] = np.divide(related, total, out=np.zeros_like(total), where=total > 0)
        return np.round(coherence, _DECIMALS)

    def _blocks(self, count: int) -> Iterator[tuple[slice, slice]]:
        """Blocks of spots, each with the range that holds all its voters."""
        for start in range(0, count, _BLOCK):
            stop = min(start + _BLOCK, count)
            yield slice(start, stop), slice(max(start - self.options.window, 0), min(stop + self.options.window, count))

    def _voters(self, spots: list[Spot], block: slice, context: slice) -> np.ndarray:
        """float64 [block, context]: 1 where the second spot votes for the first."""
        span = np.array([(spot.start, spot.end, spot.phrase) for spot in spots[context]])
        number = np.arange(context.start, context.stop)
        own = slice(block.start - context.start, block.stop - context.start)
        start, end, phrase = (span[:, column] for column in range(3))
        near = np.abs(number[own, None] - number) <= self.options.window
        apart = (start[own, None] >= end) | (end[own, None] <= start)
        different = (phrase[own, None] != phrase) | (phrase == _ANCHOR)
        return (near & apart & different).astype(np.float64)


def _without_parts(spots: list[Spot]) -> list[Spot]:
    """Drops a spot within a longer one unless its own link probability is higher (TAGME's rule)."""
    kept, around = list[Spot](), list[Spot]()
    for spot in spots:
        around = [other for other in around if other.end > spot.start]
        inside = any(other.end >= spot.end and other.link_probability >= spot.link_probability for other in around)
        if not inside or spot.phrase == _ANCHOR:
            kept.append(spot)
        around.append(spot)
    return kept


def _without_overlap(found: list[LinkedMention]) -> list[LinkedMention]:
    """The best of overlapping mentions: higher rho, then longer, then earlier."""
    kept = list[LinkedMention]()
    covered = set[int]()
    for mention in sorted(found, key=lambda one: (-one.rho, one.start - one.end, one.start)):
        characters = range(mention.start, mention.end)
        if covered.isdisjoint(characters):
            covered.update(characters)
            kept.append(mention)
    return sorted(kept)
