"""Facts as prompts: tokens with masks, and what the answer is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from trelm_ds.evaluation.lama.candidates import Candidates, encode_words
from trelm_ds.evaluation.lama.data import MASK, Fact, Relation

MultiToken = Literal["skip", "mean-log-prob"]
SEVERAL, OUTSIDE, TOO_LONG, EXTRA_MASK = (
    "object_is_several_tokens",
    "object_outside_vocabulary",
    "prompt_too_long",
    "mask_token_in_subject",
)


class Prompt(NamedTuple):
    """A text as a model reads it."""

    input_ids: list[int]
    """tokens, special ones included"""
    type_ids: list[int] | None
    """segment of each token, None if all are of the first"""
    masks: list[int]
    """positions of the masks to fill, ascending"""


@dataclass
class Probe:
    """A fact as a question to the model, and later its answer.

    Attributes:
        relation, fact: what is asked.
        space: whether the object follows a space, which determines its form in byte-level tokenizers.
        answer: the object's tokens; one, or several with `multi_token: mean-log-prob`.
        object_key: its tokens behind a space, by which equal objects are told, wherever in a sentence they stand.
        prompts: number of masks -> prompt. One of 1 mask, or one for each number of tokens that a candidate has.
        groups: grouping -> group.
        rank: of the answer among the candidates, from 1; 0 before it is asked.
        log_prob: of the answer, natural logarithm; of several tokens the mean.
        n_candidates: what the answer was chosen from.
        top: the best candidates with their log-probabilities, best first.
    """

    relation: Relation
    fact: Fact
    space: bool
    answer: tuple[int, ...]
    object_key: tuple[int, ...]
    prompts: dict[int, Prompt]
    groups: dict[str, str] = field(default_factory=dict)
    rank: int = 0
    log_prob: float = 0.0
    n_candidates: int = 0
    top: list[tuple[str, float]] = field(default_factory=list)


def make_probes(
    relation: Relation, tokenizer: Any, candidates: Candidates, longest: int, multi_token: MultiToken
) -> tuple[list[Probe], list[Probe], Counter[str]]:
    """Turn a relation's facts into prompts.

    Args:
        relation: its facts.
        tokenizer, candidates: of the model.
        longest: tokens that the model can read.
        multi_token: whether facts whose object has several tokens are skipped or asked.

    Returns:
        The probes of one-token objects, those of objects with several tokens, and the facts left out, by reason.
    """
    skipped: Counter[str] = Counter(relation.skipped)
    one, several = [], []
    for space in (True, False):
        facts = [fact for fact in relation.facts if _follows_space(fact.texts) == space]
        objects = [fact.obj for fact in facts]
        askable = candidates.askable(objects, space)
        tokens, keys = candidates.encode(objects, space), candidates.encode(objects, True)
        for fact, ids, key, allowed in zip(facts, tokens, keys, askable, strict=True):
            probe = Probe(relation, fact, space, tuple(ids), tuple(key), {}, dict(fact.groups))
            if len(ids) > 1 and multi_token == "skip":
                skipped[SEVERAL] += 1
            elif len(ids) > 1 and tokenizer.unk_token_id not in ids:
                several.append(probe)
            elif allowed:
                one.append(probe)
            else:
                skipped[OUTSIDE] += 1
    lengths = {len(ids) for space in (True, False) for ids in several_token_objects(several, tokenizer, space)}
    one = _with_prompts(one, tokenizer, {1}, longest, skipped)
    several = _with_prompts(several, tokenizer, lengths, longest, skipped)
    place = {id(fact): row for row, fact in enumerate(relation.facts)}
    for some in (one, several):
        some.sort(key=lambda probe: place[id(probe.fact)])
    return one, several, skipped


def several_token_objects(probes: list[Probe], tokenizer: Any, space: bool) -> list[tuple[int, ...]]:
    """List the distinct objects of a relation's multi-token probes, as tokens behind a space or without one.

    Row i is the same object for both values of `space`: in byte-level tokenizers the two forms differ.
    """
    labels = list(dict.fromkeys(probe.fact.obj.strip() for probe in probes))
    distinct = {tuple(ids): row for row, ids in reversed(list(enumerate(encode_words(tokenizer, labels, True))))}
    kept = [labels[row] for row in sorted(distinct.values())]
    return [tuple(ids) for ids in encode_words(tokenizer, kept, space)]


def encode_prompts(tokenizer: Any, texts: Sequence[tuple[str, ...]], masks: int) -> list[Prompt]:
    """Encode sentences or pairs of sentences, with the first [MASK] of each replaced by `masks` mask tokens.

    The answer brings its own leading space, so a space in front of the masks is dropped: only some tokenizers, such
    as older RoBERTa ones, strip it. Further masks stay masks; as in LAMA, the first one is asked for.
    """
    filled = [_fill(one, tokenizer.mask_token, masks) for one in texts]
    found: list[Prompt | None] = [None] * len(texts)
    for width in {len(one) for one in filled}:
        rows = [row for row, one in enumerate(filled) if len(one) == width]
        columns = [[filled[row][column] for row in rows] for column in range(width)]
        encoded = tokenizer(*columns)
        types = encoded.get("token_type_ids") if width > 1 else None
        for place, row in enumerate(rows):
            ids = encoded["input_ids"][place]
            at = [position for position, token in enumerate(ids) if token == tokenizer.mask_token_id]
            found[row] = Prompt(ids, types[place] if types else None, at[:masks])
    return [prompt for prompt in found if prompt]


def _fill(texts: tuple[str, ...], mask_token: str, masks: int) -> tuple[str, ...]:
    asked = _asked(texts)
    before, _, after = texts[asked].partition(MASK)
    filled = [text.replace(MASK, mask_token) for text in texts]
    filled[asked] = before.rstrip() + mask_token * masks + after.replace(MASK, mask_token)
    return tuple(filled)


def _asked(texts: tuple[str, ...]) -> int:
    """Which of the sentences holds the mask that is asked for."""
    return next(row for row, text in enumerate(texts) if MASK in text)


def _follows_space(texts: tuple[str, ...]) -> bool:
    return texts[_asked(texts)].partition(MASK)[0].endswith(" ")


def _with_prompts(
    probes: list[Probe], tokenizer: Any, lengths: set[int], longest: int, skipped: Counter[str]
) -> list[Probe]:
    """Give each probe its prompts; keep those that the model can be asked."""
    texts = [probe.fact.texts for probe in probes]
    by_length = {masks: encode_prompts(tokenizer, texts, masks) for masks in sorted(lengths)} if probes else {}
    kept = []
    for row, probe in enumerate(probes):
        probe.prompts = {masks: prompts[row] for masks, prompts in by_length.items()}
        if max(len(prompt.input_ids) for prompt in probe.prompts.values()) > longest:
            skipped[TOO_LONG] += 1
        elif _has_extra_mask(probe.fact, tokenizer):
            skipped[EXTRA_MASK] += 1
        else:
            kept.append(probe)
    return kept


def _has_extra_mask(fact: Fact, tokenizer: Any) -> bool:
    """Whether the mask to fill cannot be told from one in the subject, or from one in the model's own spelling."""
    if fact.from_template:
        return MASK in fact.subject or tokenizer.mask_token in fact.subject
    return tokenizer.mask_token != MASK and any(tokenizer.mask_token in text for text in fact.texts)
