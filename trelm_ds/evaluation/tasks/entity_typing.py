"""Entity typing: which types a marked mention has (Open Entity, Choi et al., 2018, in ERNIE's JSON format)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trelm_ds.evaluation.scorers import loose_macro, loose_micro
from trelm_ds.evaluation.tasks.marked import Mark, marked
from trelm_ds.evaluation.tasks.records import find_split, list_of_objects, read_json_file, span, text, texts
from trelm_ds.evaluation.tasks.task import Example, Kind, Scores, Task, check_labels

_HINT = "give a folder with train.json, dev.json and test.json as ERNIE and KEPLER have them (.gz will do)"
_SIGN = "@"


def read_typing(folder: Path) -> Task:
    """Read train, dev and test of FOLDER: lists of {sent, start, end, labels}, places in characters, end exclusive.

    The mention stands between two @, as in KEPLER's setting (ERNIE and DKPLM take a Chinese full stop, which
    byte-level vocabularies split).

    Raises:
        UserError: a file is missing, empty or malformed; names file and record.
    """
    splits = {name: _read(find_split(folder, f"{name}.json", hint=_HINT)) for name in ("train", "dev", "test")}
    train = splits.pop("train")
    return Task(
        name="typing",
        kind=Kind.MULTI,
        labels=check_labels(train, splits, "types can only be learned from there"),
        train=train,
        evaluated=splits,
        reported="test",
        score=score_typing,
        metric="micro_f1",
    )


def _read(path: Path) -> list[Example]:
    return [_example(record, place) for place, record in list_of_objects(read_json_file(path), path)]


def _example(record: dict[str, Any], place: str) -> Example:
    sentence = text(record, "sent", place)
    mention = span(record.get("start"), record.get("end"), len(sentence), "the mention, characters", place)
    shown, kept = marked(sentence, [Mark(_SIGN, *mention)])
    return Example((shown,), frozenset(texts(record, "labels", place)), place, kept)


def score_typing(gold: Sequence[frozenset[str]], predicted: Sequence[frozenset[str]]) -> Scores:
    """Compute the loose scores, micro (the paper's Table 4) and macro."""
    found = {"micro": loose_micro(gold, predicted), "macro": loose_macro(gold, predicted)}
    return {f"{kind}_{name}": value for kind, prf in found.items() for name, value in prf._asdict().items()}
