"""Relation extraction: the relation of two marked mentions (TACRED, Zhang et al., 2017; FewRel, Han et al., 2018)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from trelm_ds.errors import UserError
from trelm_ds.evaluation.scorers import accuracy, relation_macro, relation_micro
from trelm_ds.evaluation.tasks.marked import Mark, join_words, marked
from trelm_ds.evaluation.tasks.records import find_split, list_of_objects, read_json_file, span, text, texts
from trelm_ds.evaluation.tasks.task import Example, Kind, Scores, Task, check_labels

NO_RELATION = ("no_relation", "NA")  # TACRED's name, and that of most other sets
_SUBJECT, _OBJECT = "#", "$"
_HINT = "give a folder with train.json, dev.json and test.json in TACRED's or FewRel's format (.gz will do)"
# How the Penn Treebank, and so TACRED, writes what models have read as brackets.
_BRACKETS = {"-lrb-": "(", "-rrb-": ")", "-lsb-": "[", "-rsb-": "]", "-lcb-": "{", "-rcb-": "}"}
_BRACKETS |= {name.upper(): bracket for name, bracket in _BRACKETS.items()}


def read_relation(folder: Path, no_relation: str | None = None) -> Task:
    """Read train, dev and test of FOLDER, each in one of three formats.

    - TACRED: a list of {token, subj_start, subj_end, obj_start, obj_end, relation}; places in words, the end included
    - FewRel: relation -> list of {tokens, h, t}, with h and t as [name, id, [[places in words, ...], ...]]
    - FewRel as ERNIE has it: a list of {text, label, ents}, with the first two of ents as [id, start, end, ...]; places
      in characters, the end exclusive

    The subject stands between two #, the object between two $, as in ERNIE's and DKPLM's setting.

    Args:
        no_relation: name of the label that is no relation; default: the first of `NO_RELATION` that occurs.

    Raises:
        UserError: a file is missing, empty or malformed; names file and record.
    """
    splits = {name: _read(find_split(folder, f"{name}.json", hint=_HINT)) for name in ("train", "dev", "test")}
    train = splits.pop("train")
    hint = "FewRel's published train and val have different relations: divide one of them by sentences instead"
    labels = check_labels(train, splits, hint)
    if no_relation is not None and no_relation not in labels:
        raise UserError(f"--no-relation: no record of the training split has the relation '{no_relation}'")
    negative = no_relation or next((name for name in NO_RELATION if name in labels), None)
    return Task(
        name="relation",
        kind=Kind.SINGLE,
        labels=labels,
        train=train,
        evaluated=splits,
        reported="test",
        score=partial(score_relation, negative=negative),
        metric="micro_f1",
        scoring={"no_relation": negative},
    )


def _read(path: Path) -> list[Example]:
    content = read_json_file(path)
    if isinstance(content, dict):
        return list(_fewrel(content, path))
    records = list_of_objects(content, path)
    read = _ernie if "text" in records[0][1] else _tacred
    return [read(record, place) for place, record in records]


def _tacred(record: dict[str, Any], place: str) -> Example:
    words = _words(texts(record, "token", place), place)
    spans = []
    for name in ("subj", "obj"):
        first, last = record.get(f"{name}_start"), record.get(f"{name}_end")
        end = last + 1 if isinstance(last, int) else last
        spans.append(span(first, end, len(words), f"{name}_start and {name}_end, words", place))
    return _of_words(words, spans, text(record, "relation", place), place)


def _fewrel(content: dict[str, Any], path: Path) -> Iterator[Example]:
    if not content:
        raise UserError(f"{path}: holds no record")
    for relation, instances in content.items():
        of_relation = Path(f"{path}: {relation}")
        for place, record in list_of_objects(instances, of_relation):
            words = _words(texts(record, "tokens", place), place)
            spans = [_fewrel_span(record.get(key), key, len(words), place) for key in ("h", "t")]
            yield _of_words(words, spans, relation, place)


def _fewrel_span(value: Any, key: str, length: int, place: str) -> tuple[int, int]:
    """Take the first of the places at which the mention is given."""
    try:
        words = value[2][0]
        first, last = words[0], words[-1] + 1
    except (TypeError, IndexError, KeyError):
        raise UserError(f"{place}: '{key}' must be [name, id, [[word, ...], ...]]") from None
    return span(first, last, length, f"'{key}', words", place)


def _ernie(record: dict[str, Any], place: str) -> Example:
    sentence, mentions = text(record, "text", place), record.get("ents")
    if not isinstance(mentions, list) or len(mentions) < 2 or not all(isinstance(m, list) for m in mentions[:2]):
        raise UserError(f"{place}: 'ents' must be a list of two mentions, each [id, start, end, ...]")
    spans = [span(*_bounds(mention), len(sentence), "'ents', characters", place) for mention in mentions[:2]]
    return _marked(sentence, spans, text(record, "label", place), place)


def _bounds(mention: list[Any]) -> tuple[Any, Any]:
    return (mention[1], mention[2]) if len(mention) > 2 else (None, None)


def _words(given: list[str], place: str) -> list[str]:
    if not given:
        raise UserError(f"{place}: its sentence has no word")
    return [_BRACKETS.get(word, word) for word in given]


def _of_words(words: list[str], spans: list[tuple[int, int]], relation: str, place: str) -> Example:
    sentence, places = join_words(words)
    return _marked(sentence, [(places[first][0], places[last - 1][1]) for first, last in spans], relation, place)


def _marked(sentence: str, spans: list[tuple[int, int]], relation: str, place: str) -> Example:
    shown, kept = marked(sentence, [Mark(sign, *of) for sign, of in zip((_SUBJECT, _OBJECT), spans, strict=True)])
    return Example((shown,), relation, place, kept)


def score_relation(gold: Sequence[str], predicted: Sequence[str], negative: str | None) -> Scores:
    """Compute micro scores as TACRED's official scorer (the paper's Table 5), macro scores over relations, accuracy."""
    found = {
        "micro": relation_micro(gold, predicted, negative),
        "macro": relation_macro(gold, predicted, negative),
    }
    scores = {f"{kind}_{name}": value for kind, prf in found.items() for name, value in prf._asdict().items()}
    return scores | {"accuracy": accuracy(gold, predicted)}
