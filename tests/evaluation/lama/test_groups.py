"""Facts scored apart by how often the corpus mentions their subject."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import CITIES, PEOPLE
from tests.evaluation.lama.makers import bert_folder, scored, write_facts, write_lines
from tests.logged import warns
from trelm_ds.errors import UserError


def test_long_tail_subjects(tiny_dataset: Path, tmp_path: Path) -> None:
    qids, counts = (np.load(tiny_dataset / "entities" / f"{name}.npy") for name in ("qids", "counts"))
    rare, frequent = qids[counts < counts.mean()].tolist(), qids[counts >= counts.mean()].tolist()
    assert rare
    assert frequent
    never = max(len(PEOPLE) + len(CITIES), *qids.tolist()) + 1
    subjects = [f"Q{rare[0]}", f"Q{never}", f"Q{frequent[0]}", f"Q{10**11}", None]
    data = write_facts(tmp_path / "lama", {})
    objects = ["rome", "rome", "rome", "paris", "oslo"]
    records = [
        {"sub_label": f"ana {row}", "obj_label": obj, "sub_uri": subject}
        for row, (subject, obj) in enumerate(zip(subjects, objects, strict=True))
    ]
    write_lines(data / "TREx/P1.jsonl", records)
    model = bert_folder(tmp_path / "model", ["rome"])
    assert scored(model, data)["groups"] == {"name": scored(model, data)["groups"]["name"]}
    groups = scored(model, data, dataset=tiny_dataset)["groups"]["subject"]
    # Never mentioned is in the long tail; without an id a subject is in neither group.
    assert {name: (score["n_facts"], score["p_at_1"]) for name, score in groups.items()} == {
        "long_tail": (3, 2 / 3),
        "frequent": (1, 1.0),
    }
    assert groups["long_tail"]["majority_baseline"]["p_at_1"] == 2 / 3


def test_subjects_without_an_id_are_told(tiny_dataset: Path, tmp_path: Path) -> None:
    data = write_facts(tmp_path / "lama", {"P1": [("ana", "rome")]})
    with warns("--dataset: no subject has a Wikidata id"):
        part = scored(bert_folder(tmp_path / "model", ["rome"]), data, dataset=tiny_dataset)
    assert "subject" not in part["groups"]


def test_a_folder_that_is_no_dataset_is_named(tmp_path: Path) -> None:
    data = write_facts(tmp_path / "lama", {"P1": [("ana", "rome")]})
    with pytest.raises(UserError, match=r"--dataset: .* is no prepared dataset"):
        scored(tmp_path, data, dataset=tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match=r"qids.npy: missing"):
        scored(tmp_path, data, dataset=tmp_path)
