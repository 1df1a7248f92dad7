"""LAMA-UHN (unhelpful names): which facts cannot be guessed from the subject's name.

Poerner, Waltinger and Schütze, "E-BERT: Efficient-Yet-Effective Entity Embeddings for BERT" (2020; first as "BERT is
Not a Knowledge Base (Yet)", arXiv:1911.03681). LAMA's repository makes its files by `scripts/create_lama_uhn.py`, whose
two filters are computed here where the data holds no such files, for T-REx and Google-RE:

- string match: the object's label is part of the subject's, whatever the case ("Apple Watch" is made by Apple);
- person names, for seven relations: the object is among a model's three best answers to "[X] is a common name in the
  following city : [MASK] ." (or country, or language) for one of the words of the subject's name. The published filter
  asks bert-base-cased, with its whole vocabulary as candidates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trelm_ds.evaluation.lama.answers import fill_masks, longest_prompt
from trelm_ds.evaluation.lama.candidates import encode_words
from trelm_ds.evaluation.lama.data import MASK, read_unhelpful_names, unhelpful_names_folder
from trelm_ds.evaluation.lama.probes import Probe, Prompt, encode_prompts

PARTS = ("trex", "google_re")
GROUPING, KEPT, REMOVED = "name", "uhn", "helpful"
BEST = 3
_NOUNS = {
    "place_of_birth": "city",
    "place_of_death": "city",
    "P19": "city",
    "P20": "city",
    "P27": "country",
    "P103": "language",
    "P1412": "language",
}


def has_helpful_string(subject: str, obj: str) -> bool:
    """Whether the object's label is part of the subject's, whatever the case."""
    return obj.lower() in subject.lower()


class PersonNames:
    """What a model takes names for.

    Args:
        model, tokenizer: a masked language model of the library, on its device.
        batch_size: prompts per forward pass.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int) -> None:
        self._model, self._tokenizer, self._batch_size = model, tokenizer, batch_size
        self._longest = longest_prompt(model.config, tokenizer)

    def helpful(self, probes: list[Probe]) -> list[bool]:
        """Whether a word of the subject's name gives the object away; False for relations of no person."""
        asked = list(dict.fromkeys(question for probe in probes for question in _questions(probe)))
        texts = [(f"{word} is a common name in the following {noun} : {MASK} .",) for word, noun in asked]
        encoded = encode_prompts(self._tokenizer, texts, 1) if texts else []
        rows_of = [row for row, (word, _) in enumerate(asked) if self._can_be_asked(word, encoded[row])]
        prompts = [encoded[row] for row in rows_of]
        best: dict[tuple[str, str], set[int]] = {}
        for rows, scores in fill_masks(self._model, self._tokenizer, prompts, self._batch_size, "LAMA-UHN, names"):
            for row, tokens in zip(rows, scores[:, 0].topk(BEST, -1).indices.tolist(), strict=True):
                best[asked[rows_of[row]]] = set(tokens)
        objects = encode_words(self._tokenizer, [probe.fact.obj for probe in probes], True)
        return [
            len(ids) == 1 and any(ids[0] in best.get(question, ()) for question in _questions(probe))
            for probe, ids in zip(probes, objects, strict=True)
        ]

    def _can_be_asked(self, word: str, prompt: Prompt) -> bool:
        mask = self._tokenizer.mask_token
        return mask not in word and MASK not in word and len(prompt.input_ids) <= self._longest


def _questions(probe: Probe) -> list[tuple[str, str]]:
    noun = _NOUNS.get(probe.relation.id)
    return [(word, noun) for word in probe.fact.subject.split()] if noun else []


def is_published(data: Path, part: str) -> bool:
    """Whether LAMA's folder holds LAMA-UHN's files of the part."""
    return unhelpful_names_folder(data, part).is_dir()


def group_by_name(data: Path, part: str, probes: list[Probe], names: PersonNames | None) -> dict[str, Any]:
    """Put a part's probes into the groups `uhn` and `helpful`.

    Args:
        data: LAMA's folder; its `TREx_UHN` and `Google_RE_UHN`, if there, decide in place of the filters.
        part: one of `PARTS`.
        probes: all of that part.
        names: the model for the filter of person names; None: that filter is not applied.

    Returns:
        Where the filter comes from, and how many facts each filter removes: plain JSON values.

    Raises:
        UserError: a file is missing or malformed.
    """
    relations = list(dict.fromkeys(probe.relation.id for probe in probes))
    if is_published(data, part):
        published = read_unhelpful_names(data, part, relations)
        for probe in probes:
            kept = (probe.fact.subject, probe.fact.obj) in published[probe.relation.id]
            probe.groups[GROUPING] = KEPT if kept else REMOVED
        found = {"published": [probe.groups[GROUPING] == REMOVED for probe in probes]}
        return {"source": "files", "filters": list(found), "removed": _removed(found, probes)}
    by_string = [has_helpful_string(probe.fact.subject, probe.fact.obj) for probe in probes]
    found = {"string_match": by_string}
    if names is not None:
        found["person_name"] = names.helpful(probes)
    for row, probe in enumerate(probes):
        probe.groups[GROUPING] = REMOVED if any(helpful[row] for helpful in found.values()) else KEPT
    return {"source": "computed", "filters": list(found), "removed": _removed(found, probes)}


def _removed(found: dict[str, list[bool]], probes: list[Probe]) -> dict[str, int]:
    """Count what each filter removes of the facts that are scored in groups: those of one token."""
    one = [len(probe.answer) == 1 for probe in probes]
    return {name: sum(a and b for a, b in zip(helpful, one, strict=True)) for name, helpful in found.items()}
