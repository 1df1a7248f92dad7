from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.tiny_tasks import write_relation, write_splits
from trelm_ds.errors import UserError
from trelm_ds.evaluation.tasks import Kind, read_relation

TACRED = {
    "token": ["Anna", "-LRB-", "Ben", "-RRB-", "lives", "in", "Rome"],
    "subj_start": 0,
    "subj_end": 0,
    "obj_start": 6,
    "obj_end": 6,
    "relation": "home",
}
FEWREL = {
    "tokens": ["Anna", "lives", "in", "New", "York"],
    "h": ["anna", "Q1", [[0]]],
    "t": ["ny", "Q2", [[3, 4], [0]]],
}
ERNIE = {"text": "Anna lives in Rome.", "label": "home", "ents": [["Q1", 14, 18, 1.0], ["Q2", 0, 4, 0.5]]}


def test_tacred(tmp_path: Path) -> None:
    task = read_relation(write_relation(tmp_path / "tacred"))
    assert task.kind is Kind.SINGLE
    assert task.labels == ("home", "no_relation", "work")
    assert task.train[0].texts == ("# Anna # lives in $ Paris $ ( the bank ) .",)
    assert task.train[2].texts == ("$ Anna $ lives in # Rome # ( the bank ) .",)
    assert task.train[2].target == "no_relation"


@pytest.mark.parametrize("name", ["no_relation", "NA"])
def test_no_relation_is_known_by_name(name: str, tmp_path: Path) -> None:
    task = read_relation(write_relation(tmp_path / "tacred", name))
    assert task.score(["home", name], [name, name])["micro_f1"] == 0
    assert task.score(["home", name], ["home", name])["micro_f1"] == 1
    baseline = task.baseline("test")  # always no relation
    assert (baseline["micro_f1"], baseline["accuracy"]) == (0, 0.5)


def test_no_relation_may_be_named(tmp_path: Path) -> None:
    folder = write_relation(tmp_path / "tacred", "Other")
    assert read_relation(folder).score(["Other"], ["Other"])["micro_f1"] == 1  # a relation like the others
    assert read_relation(folder, "Other").score(["Other"], ["Other"])["micro_f1"] == 0
    with pytest.raises(UserError, match="--no-relation: no record of the training split has the relation 'none'"):
        read_relation(folder, "none")


def test_fewrel_as_published(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps({"P551": [FEWREL], "P19": [FEWREL]}))
    task = read_relation(tmp_path)
    assert task.labels == ("P19", "P551")
    assert task.train[0].texts == ("# Anna # lives in $ New York $",)


def test_fewrel_as_ernie_has_it(tmp_path: Path) -> None:
    task = read_relation(write_splits(tmp_path, [ERNIE]))
    assert task.train[0].texts == ("$ Anna $ lives in # Rome # .",)


def test_the_shared_data(shared_data: Path) -> None:
    task = read_relation(shared_data / "relation_extraction")
    assert len(task.labels) == 16
    assert {name: len(split) for name, split in task.splits.items()} == {"train": 8000, "dev": 1600, "test": 1600}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (TACRED | {"subj_end": 7}, "record 2: subj_start and subj_end, words 0 to 8, is not within the sentence of 7"),
        (TACRED | {"obj_start": -1}, "record 2: obj_start and obj_end, words -1 to 7"),
        (TACRED | {"obj_end": None}, r"record 2: obj_start and obj_end, words must be two integers, got \[6, None\]"),
        (TACRED | {"token": []}, "record 2: its sentence has no word"),
        (TACRED | {"token": "Anna"}, "record 2: 'token' must be a list of texts"),
        (TACRED | {"relation": 3}, "record 2: 'relation' must be a text, got 3"),
        (TACRED | {"relation": "alien"}, "record 2: the label 'alien' is not in the training split"),
        (ERNIE, "record 2: 'token' must be a list of texts, got None"),
    ],
)
def test_a_bad_record_of_tacred(record: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_splits(tmp_path, [TACRED])
    (tmp_path / "test.json").write_text(json.dumps([TACRED, record]))
    with pytest.raises(UserError, match=f"test.json: {message}"):
        read_relation(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"P1": [FEWREL | {"h": ["anna"]}]}, r"P1: record 1: 'h' must be \[name, id, \[\[word, ...\], ...\]\]"),
        ({"P1": [FEWREL | {"t": ["ny", "Q2", [[4, 5]]]}]}, "P1: record 1: 't', words 4 to 6, is not within"),
        ({"P1": []}, "P1: holds no record"),
        ({"P1": 3}, "P1: expected a JSON array of records, got a number"),
        ({}, "holds no record"),
        ([ERNIE | {"ents": [["Q1", 14, 18, 1.0]]}], "record 1: 'ents' must be a list of two mentions"),
        ([ERNIE | {"ents": [["Q1"], ["Q2"]]}], "record 1: 'ents', characters must be two integers"),
        ([ERNIE | {"ents": [["Q1", 14, 99, 1.0], ["Q2", 0, 4, 1]]}], "record 1: 'ents', characters 14 to 99"),
    ],
)
def test_a_bad_record_of_fewrel(content: Any, message: str, tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"train.json: {message}"):
        read_relation(tmp_path)


def test_fewrel_published_splits_have_other_relations(tmp_path: Path) -> None:
    for split, relation in {"train": "P1", "dev": "P2", "test": "P2"}.items():
        (tmp_path / f"{split}.json").write_text(json.dumps({relation: [FEWREL]}))
    with pytest.raises(
        UserError, match="the label 'P2' is not in the training split; FewRel's published train and val"
    ):
        read_relation(tmp_path)
