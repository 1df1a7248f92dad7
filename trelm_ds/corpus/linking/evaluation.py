"""Evaluation of a linker: hide known anchors, and check how many it finds again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from trelm_ds.corpus.documents import Document, Mention
from trelm_ds.corpus.linking.dictionary import LinkDictionary
from trelm_ds.corpus.linking.linker import LinkedMention, Linker
from trelm_ds.corpus.linking.text import case_of, normalize, phrase_of, trim
from trelm_ds.keyed_random import keyed_uniform

_HIDE = 0x22  # key of the draw of hidden anchors
Scorer = Callable[[Document], list[LinkedMention]]


def text_key(text: str) -> int:
    """Hash a text to 63 bits, so that equal texts fall into the same fold."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()) >> 1


def fold_of(text: str, folds: int = 10) -> int:
    """Return the fold of a document; one fold is held out for evaluation and must not enter the statistics."""
    return text_key(text) % folds


@dataclass
class LinkingScore:
    """Counts at one threshold, and rates derived from them, which are 0 for empty counts.

    Attributes:
        threshold: mentions with a lower rho are dropped.
        predicted: predicted mentions.
        judged: mentions that overlap a hidden anchor. Anchors are incomplete, so the others may be right or wrong.
        right: judged mentions with a hidden anchor's span and entity.
        right_span: judged mentions with a hidden anchor's span.
        right_entity: judged mentions with the entity of a hidden anchor they overlap.
        right_known: right mentions whose phrase has the entity as a candidate in the dictionary.
        hidden: hidden anchors.
        known: hidden anchors whose phrase has their entity as a candidate in the dictionary.
    """

    threshold: float
    predicted: int = 0
    judged: int = 0
    right: int = 0
    right_span: int = 0
    right_entity: int = 0
    right_known: int = 0
    hidden: int = 0
    known: int = 0

    @property
    def precision(self) -> float:
        """Share of the judged mentions that are right."""
        return self.right / max(self.judged, 1)

    @property
    def recall(self) -> float:
        """Share of the hidden anchors that were found."""
        return self.right / max(self.hidden, 1)

    @property
    def known_recall(self) -> float:
        """Recall among the anchors that the dictionary can link at all."""
        return self.right_known / max(self.known, 1)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.right / max(self.judged + self.hidden, 1)

    def add(self, found: list[LinkedMention], hidden: set[Mention], known: set[Mention]) -> None:
        """Add the counts of one document."""
        spans = {(anchor.start, anchor.end) for anchor in hidden}
        self.hidden += len(hidden)
        self.known += len(known)
        for mention in found:
            if mention.rho < self.threshold:
                continue
            over = [anchor for anchor in hidden if anchor.start < mention.end and mention.start < anchor.end]
            anchor = Mention(mention.start, mention.end, mention.qid)
            self.predicted += 1
            self.judged += bool(over)
            self.right += anchor in hidden
            self.right_span += (mention.start, mention.end) in spans
            self.right_entity += any(mention.qid == other.target for other in over)
            self.right_known += anchor in known


@dataclass
class LinkingEvaluation:
    """Result of `evaluate_linker`.

    Attributes:
        scores: counts per threshold.
        documents, characters: size of the text.
        mentions: mentions scored by the linker, whatever their rho.
        seconds: time spent in the linker, in one process.
    """

    scores: list[LinkingScore]
    documents: int = 0
    characters: int = 0
    mentions: int = 0
    seconds: float = 0.0

    @property
    def mentions_per_second(self) -> float:
        """Mentions scored per second of the linker's time."""
        return self.mentions / max(self.seconds, 1e-9)

    @property
    def characters_per_second(self) -> float:
        """Characters read per second of the linker's time."""
        return self.characters / max(self.seconds, 1e-9)


def evaluate_linker(
    scorer: Linker | Scorer,
    dictionary: LinkDictionary,
    documents: Iterable[Document],
    into: LinkingEvaluation,
    hidden_share: float = 1.0,
) -> LinkingEvaluation:
    """Hide anchors of held-out documents, and count how many the linker finds.

    Args:
        scorer: a linker, or a function from a document to scored mentions without overlap.
        dictionary: determines which hidden anchors can be found.
        documents: documents with QID numbers as targets, none of which entered the statistics.
        into: the evaluation to add to, so that folds can be summed; its `scores` define the thresholds.
        hidden_share: share of anchors that are hidden, chosen by a hash; the others are visible to the linker.
    """
    score = scorer.score if isinstance(scorer, Linker) else scorer
    for document in documents:
        hidden, visible = _hide(document, hidden_share)
        shown = Document(document.text, visible)
        started = time.perf_counter()
        found = score(shown)
        into.seconds += time.perf_counter() - started
        into.documents += 1
        into.characters += len(document.text)
        into.mentions += len(found)
        known = {anchor for anchor in hidden if _is_known(document.text, anchor, dictionary)}
        for row in into.scores:
            row.add(found, hidden, known)
    return into


def most_common_sense(dictionary: LinkDictionary) -> Scorer:
    """Make the baseline: longest matches from the left with their most common entity; rho is the link probability."""
    probabilities = dictionary.link_probability
    assert probabilities is not None

    def score(document: Document) -> list[LinkedMention]:
        text, found = normalize(document.text), list[LinkedMention]()
        longest: dict[int, tuple[int, int]] = {}
        for first, last, phrase in dictionary.find(text.text):
            longest[first] = (last, phrase)  # matches come in order of end, so the longest one remains
        # Nearly every match is kept, however improbable: the thresholds of the evaluation drop the rest.
        end = 0
        for first, (last, phrase) in longest.items():
            start, stop = text.span(first, last)
            probability = float(probabilities[phrase, case_of(document.text[start:stop])])
            if start < end or probability < 0.01:
                continue
            overlap = any(start < other.end and other.start < stop for other in document.mentions)
            if not overlap:
                best = dictionary.candidate_offsets[phrase]
                qid = int(dictionary.entities[dictionary.candidates[best]])
                commonness = float(dictionary.commonness[best])
                found.append(LinkedMention(start, stop, qid, probability, probability, 0.0, commonness))
                end = stop
        return found

    return score


def _hide(document: Document, share: float) -> tuple[set[Mention], list[Mention]]:
    """Divide a document's anchors into hidden ones, trimmed to what can be a phrase, and visible ones."""
    draws = keyed_uniform(_HIDE, text_key(document.text), np.arange(len(document.mentions)))
    hidden, visible = set[Mention](), list[Mention]()
    for mention, draw in zip(document.mentions, draws.tolist(), strict=True):
        if draw < share:
            start, end = trim(document.text, mention.start, mention.end)
            hidden.add(Mention(start, end, mention.target) if start < end else mention)
        else:
            visible.append(mention)
    return hidden, visible


def _is_known(text: str, anchor: Mention, dictionary: LinkDictionary) -> bool:
    """Tell whether the anchor's entity is a candidate of its phrase."""
    phrase = phrase_of(text[anchor.start : anchor.end])
    number = dictionary.phrases.get(phrase)
    if number is None:
        return False
    here = slice(*dictionary.candidate_offsets[number : number + 2].tolist())
    return anchor.target in dictionary.entities[dictionary.candidates[here]]
