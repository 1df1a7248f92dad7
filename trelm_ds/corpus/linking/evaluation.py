"""How good a linker is: known anchors are hidden and have to be found again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from trelm_ds.corpus.documents import Document, Mention
from trelm_ds.corpus.linking.dictionary import LinkDictionary
from trelm_ds.corpus.linking.linker import LinkedMention, Linker
from trelm_ds.corpus.linking.text import case_of, normalize, phrase_of, trim
from trelm_ds.keyed_random import keyed_uniform

_HIDE = 0x22  # key of the draw of hidden anchors
Scorer = Callable[[Document], list[LinkedMention]]


def text_key(text: str) -> int:
    """A 63-bit hash of a text: equal texts fall into the same share of a corpus."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()) >> 1


def is_held_out(text: str, share: float = 0.1) -> bool:
    """Whether a document is for evaluation and must not enter the statistics; a function of its text alone."""
    return text_key(text) % 10_000 < share * 10_000


@dataclass(frozen=True)
class LinkingScore:
    """Scores at one threshold. Rates are None where nothing was counted.

    Attributes:
        threshold: mentions of lower rho were dropped.
        predicted: mentions.
        judged: mentions that overlap a hidden anchor. Anchors are not complete, so the others may be right or wrong.
        precision: share of judged mentions with a hidden anchor's span and entity.
        span_precision: share of judged mentions with a hidden anchor's span.
        entity_precision: share of judged mentions with the entity of a hidden anchor that they overlap.
        recall: share of hidden anchors found with their span and entity.
        known_recall: the same among anchors whose phrase has their entity as a candidate in the dictionary.
    """

    threshold: float
    predicted: int
    judged: int
    precision: float | None
    span_precision: float | None
    entity_precision: float | None
    recall: float | None
    known_recall: float | None


@dataclass(frozen=True)
class LinkingEvaluation:
    """What `evaluate_linker` found; speed is that of one process, evaluation itself not counted."""

    documents: int
    characters: int
    anchors: int
    known_anchors: int
    seconds: float
    mentions_per_second: float
    characters_per_second: float
    scores: list[LinkingScore]

    def to_json(self) -> dict:
        """As plain numbers."""
        return asdict(self)


def evaluate_linker(
    scorer: Linker | Scorer,
    dictionary: LinkDictionary,
    documents: Iterable[Document],
    thresholds: Sequence[float],
    hidden_share: float = 1.0,
) -> LinkingEvaluation:
    """Hides anchors of documents that the dictionary has not seen, and looks for them.

    Args:
        scorer: a linker, or a function from a document to scored mentions without overlap.
        dictionary: tells which hidden anchors could be found.
        documents: with QID numbers as targets; none may have entered the statistics.
        thresholds: of rho.
        hidden_share: share of anchors that are hidden, by a hash; the others are visible to the linker.
    """
    score = scorer.score if isinstance(scorer, Linker) else scorer
    tallies = {threshold: [0] * 6 for threshold in thresholds}
    totals = [0] * 4  # documents, characters, hidden anchors, known ones
    mentions, seconds = 0, 0.0
    for document in documents:
        hidden, visible = _hide(document, hidden_share)
        shown = Document(document.text, visible)
        started = time.perf_counter()
        found = score(shown)
        seconds += time.perf_counter() - started
        mentions += len(found)
        known = {anchor for anchor in hidden if _is_known(document.text, anchor, dictionary)}
        totals = [a + b for a, b in zip(totals, (1, len(document.text), len(hidden), len(known)), strict=True)]
        for threshold, tally in tallies.items():
            kept = [mention for mention in found if mention.rho >= threshold]
            for index, value in enumerate(_compare(kept, hidden, known)):
                tally[index] += value
    scores = [
        LinkingScore(
            threshold,
            predicted,
            judged,
            _rate(right, judged),
            _rate(spans, judged),
            _rate(entities, judged),
            _rate(right, totals[2]),
            _rate(right_known, totals[3]),
        )
        for threshold, (predicted, judged, right, spans, entities, right_known) in tallies.items()
    ]
    speed = (mentions / seconds, totals[1] / seconds) if seconds else (0.0, 0.0)
    return LinkingEvaluation(*totals, seconds, *speed, scores)


def most_common_sense(dictionary: LinkDictionary) -> Scorer:
    """The baseline: longest matches from the left, each with its most common entity; rho is the link probability."""
    probabilities = dictionary.link_probability
    assert probabilities is not None

    def score(document: Document) -> list[LinkedMention]:
        text, found = normalize(document.text), list[LinkedMention]()
        longest: dict[int, tuple[int, int]] = {}
        for first, last, phrase in dictionary.find(text.text):
            longest[first] = (last, phrase)  # in order of end
        # A match is taken whatever its probability as long as it can be one at all; the sweep of thresholds drops it.
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
    """Hidden anchors, narrowed to what can be a phrase at all, and visible ones."""
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
    phrase = phrase_of(text[anchor.start : anchor.end])
    number = dictionary.phrases.get(phrase)
    if number is None:
        return False
    here = slice(*dictionary.candidate_offsets[number : number + 2].tolist())
    return anchor.target in dictionary.entities[dictionary.candidates[here]]


def _compare(found: list[LinkedMention], hidden: set[Mention], known: set[Mention]) -> tuple[int, ...]:
    """Mentions, judged ones, and of these: right, of a right span, of a right entity; anchors found that are known."""
    spans = {(anchor.start, anchor.end) for anchor in hidden}
    judged = right = span = entity = right_known = 0
    for mention in found:
        over = [anchor for anchor in hidden if anchor.start < mention.end and mention.start < anchor.end]
        anchor = Mention(mention.start, mention.end, mention.qid)
        judged += bool(over)
        right += anchor in hidden
        right_known += anchor in known
        span += (mention.start, mention.end) in spans
        entity += any(mention.qid == other.target for other in over)
    return len(found), judged, right, span, entity, right_known


def _rate(count: int, total: int) -> float | None:
    return count / total if total else None
