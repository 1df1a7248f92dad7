from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.tiny_tasks import write_splits, write_typing
from trelm_ds.errors import UserError
from trelm_ds.evaluation.tasks import Kind, read_typing


def test_open_entity_format(tmp_path: Path) -> None:
    task = read_typing(write_typing(tmp_path / "typing"))
    assert task.kind is Kind.MULTI
    assert task.labels == ("person", "place", "workplace")
    assert {name: len(split) for name, split in task.splits.items()} == {"train": 48, "dev": 48, "test": 48}
    work = task.train[3]
    assert work.texts == ("Anna works at the @ bank @ .",)
    assert work.target == {"place", "workplace"}
    assert work.mentions == (18, 26)


def test_the_baseline_knows_the_training_labels_only(tmp_path: Path) -> None:
    """24 of 48 mentions are persons; "place" is as frequent, and comes later in the alphabet."""
    scores = read_typing(write_typing(tmp_path / "typing")).baseline("test")
    assert scores["micro_precision"] == 0.5
    assert scores["micro_recall"] == pytest.approx(24 / 60)


def test_the_shared_data(shared_data: Path) -> None:
    task = read_typing(shared_data / "entity_typing")
    assert len(task.labels) == 15
    assert {name: len(split) for name, split in task.splits.items()} == {"train": 1592, "dev": 543, "test": 504}
    for example in task.train:
        assert example.mentions is not None
        shown = example.texts[0][slice(*example.mentions)]
        assert shown.startswith("@ ")
        assert shown.endswith(" @")


def test_compressed_with_a_byte_order_mark(tmp_path: Path) -> None:
    folder = write_typing(tmp_path / "typing")
    train = (folder / "train.json").read_bytes()
    (folder / "train.json").unlink()
    (folder / "train.json.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + train))
    assert len(read_typing(folder).train) == 48


GOOD = {"sent": "Anna lives.", "start": 0, "end": 4, "labels": ["person"], "ents": []}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"start": -1}, "record 2: the mention, characters -1 to 4, is not within the sentence of 11"),
        ({"end": 12}, "record 2: the mention, characters 0 to 12, is not within"),
        ({"start": 4}, "record 2: the mention, characters 4 to 4, is not within"),
        ({"end": "4"}, r"record 2: the mention, characters must be two integers, got \[0, '4'\]"),
        ({"end": True}, r"must be two integers, got \[0, True\]"),
        ({"sent": None}, "record 2: 'sent' must be a text, got None"),
        ({"sent": " "}, "record 2: 'sent' must be a text"),
        ({"labels": "person"}, "record 2: 'labels' must be a list of texts, got 'person'"),
        ({"labels": [3]}, r"'labels' must be a list of texts, got \[3\]"),
    ],
)
def test_a_bad_record_is_named(record: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_splits(tmp_path, [GOOD])
    (tmp_path / "dev.json").write_text(json.dumps([GOOD, GOOD | record]))
    with pytest.raises(UserError, match=f"dev.json: {message}" if message.startswith("record") else message):
        read_typing(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "dev.json:1: not valid JSON"),
        ("[]", "dev.json: holds no record"),
        ("{}", "dev.json: expected a JSON array of records, got an object"),
        ("[3]", "dev.json: record 1: expected a JSON object, got a number"),
        ('[{"a": 1}\n', "dev.json:2: not valid JSON"),
        ("[" * 100_000, "dev.json: cannot be read as JSON"),
        ("9" * 5000, "dev.json: cannot be read as JSON"),
        (
            json.dumps([GOOD | {"labels": ["alien"]}]),
            "dev.json: record 1: the label 'alien' is not in the training split",
        ),
    ],
)
def test_a_file_of_another_shape(content: str, message: str, tmp_path: Path) -> None:
    write_splits(tmp_path, [GOOD])
    (tmp_path / "dev.json").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_typing(tmp_path)
    assert "\n" not in str(error.value)


def test_a_split_or_the_folder_is_missing(tmp_path: Path) -> None:
    write_splits(tmp_path, [GOOD])
    (tmp_path / "test.json").unlink()
    with pytest.raises(UserError, match=r"has no test.json; give a folder with train.json, dev.json and test.json"):
        read_typing(tmp_path)
    with pytest.raises(UserError, match="nowhere is not a folder"):
        read_typing(tmp_path / "nowhere")


def test_no_label_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.json: no record has a label"):
        read_typing(write_splits(tmp_path, [GOOD | {"labels": []}]))
