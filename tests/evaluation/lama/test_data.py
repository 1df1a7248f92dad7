"""LAMA's files, as published and damaged."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.evaluation.lama.makers import write_facts, write_lines
from trelm_ds.errors import UserError
from trelm_ds.evaluation.lama.data import read_parts, read_unhelpful_names


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def google_re(subject: str, obj: str, *judgments: str) -> dict[str, object]:
    """A record with all the keys of the published files."""
    return {
        "pred": "/people/person/place_of_birth",
        "sub": "/m/026_tl9",
        "obj": "/m/02_286",
        "evidences": [{"url": "http://en.wikipedia.org/wiki/X", "snippet": "...", "considered_sentences": ["..."]}],
        "judgments": [{"rater": "1", "judgment": judgment} for judgment in judgments],
        "sub_w": None,
        "sub_label": subject,
        "sub_aliases": [],
        "obj_w": None,
        "obj_label": obj,
        "obj_aliases": [],
        "uuid": "18af2dac",
        "masked_sentences": [f"{subject} was born in [MASK] ."],
    }


def conceptnet(relation: str, sentence: str, obj: str, *more: str) -> dict[str, object]:
    record = {"sub": "alive", "obj": obj, "pred": relation, "obj_label": obj, "uuid": "d4f11631"}
    return {**record, "masked_sentences": [sentence, *more]}


def whole_lama(folder: Path) -> Path:
    """All four parts, each with what its reader must sort out."""
    write_facts(folder, {"P1": [("ana", "paris"), ("ana", "paris"), ("ana", "rome")], "P2": []})
    judged = [
        google_re("ana", "rome", "yes", "yes", "no"),
        google_re("bob", "rome", "yes", "no"),  # even: LAMA keeps it
        google_re("cid", "rome", "no", "no", "yes"),
    ]
    write_lines(folder / "Google_RE/place_of_birth_test.jsonl", judged)
    write_lines(folder / "Google_RE/date_of_birth_test.jsonl.gz", [google_re("ana", "1941")])
    sentences = [
        conceptnet("IsA", "paris is a [MASK] .", "city"),
        conceptnet("HasA", "paris is old .", "the home of [MASK] ."),
        conceptnet("IsA", "paris is a [MASK] .", "city"),  # the very same question
        conceptnet("IsA", "paris is a [MASK] .", "home"),
        conceptnet("HasA", "rome is old .", "home", "it is the [MASK] of ana ."),
    ]
    write_lines(folder / "ConceptNet/test.jsonl", sentences)
    record = {"id": "56be_0", "sub_label": "Squad", "obj_label": "new", "masked_sentences": ["the [MASK] city ."]}
    write_lines(folder / "Squad/test.jsonl", [record, record | {"negated": ["the [MASK] city is not ."]}])
    return folder


def test_every_part_is_read(tmp_path: Path) -> None:
    parts = read_parts(whole_lama(tmp_path))
    assert list(parts) == ["trex", "google_re", "conceptnet", "squad"]
    trex = parts["trex"]
    assert [(one.id, one.label, dict(one.skipped)) for one in trex] == [
        ("P1", "label of P1", {"duplicate": 1}),
        ("P2", "label of P2", {}),
    ]
    assert [(fact.subject, fact.obj, fact.texts) for fact in trex[0].facts] == [
        ("ana", "paris", ("ana lies in [MASK] .",)),
        ("ana", "rome", ("ana lies in [MASK] .",)),
    ]
    birth, date = parts["google_re"]
    assert [(fact.subject, fact.texts) for fact in birth.facts] == [
        ("ana", ("ana was born in [MASK] .",)),
        ("bob", ("bob was born in [MASK] .",)),
    ]
    assert (birth.label, dict(birth.skipped)) == ("place of birth", {"negative_judgment": 1})
    assert date.facts[0].texts == ("ana (born [MASK]).",)
    has_a, is_a = parts["conceptnet"]
    assert (has_a.id, dict(has_a.skipped), dict(is_a.skipped)) == ("HasA", {"no_mask": 1}, {"duplicate": 1})
    assert has_a.facts[0].texts == ("rome is old .", "it is the [MASK] of ana .")
    assert [(fact.subject, fact.obj) for fact in is_a.facts] == [("alive", "city"), ("alive", "home")]
    (squad,) = parts["squad"]
    assert (squad.id, squad.label, len(squad.facts), dict(squad.skipped)) == ("squad", "SQuAD", 1, {"duplicate": 1})


def test_subjects_ids_and_tiers_are_read(tmp_path: Path) -> None:
    write_facts(tmp_path, {})
    fact = {"sub_label": "ana", "obj_label": "rome"}
    ids = [{"sub_uri": "Q42"}, {"sub_uri": None, "sub_w": "Q7"}, {"sub_uri": 5}, {"sub_uri": "P4"}, {"tier": 3}]
    write_lines(tmp_path / "TREx/P1.jsonl", [fact | {"obj_label": f"o{row}"} | one for row, one in enumerate(ids)])
    facts = read_parts(tmp_path)["trex"][0].facts
    assert [one.qid for one in facts] == [42, 7, None, None, None]
    assert [one.groups for one in facts] == [{}, {}, {}, {}, {"tier": "3"}]


def test_byte_order_marks_and_blank_lines_count_for_nothing(tmp_path: Path) -> None:
    write_facts(tmp_path, {"P1": [("ana", "paris")]})
    for path in (tmp_path / "relations.jsonl", tmp_path / "TREx/P1.jsonl"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\n\n")
    assert [fact.subject for fact in read_parts(tmp_path)["trex"][0].facts] == ["ana"]


def test_published_unhelpful_names(tmp_path: Path) -> None:
    write_lines(tmp_path / "TREx_UHN/P1.jsonl.gz", [{"sub_label": "ana", "obj_label": "rome"}])
    (tmp_path / "TREx_UHN/P2.jsonl").write_text("")
    assert read_unhelpful_names(tmp_path, "trex", ["P1", "P2"]) == {"P1": {("ana", "rome")}, "P2": set()}
    with pytest.raises(UserError, match=r"TREx_UHN: lacks P3.jsonl; add it, or remove the folder"):
        read_unhelpful_names(tmp_path, "trex", ["P3"])
    write_lines(tmp_path / "Google_RE_UHN/place_of_birth_test.jsonl", [{"sub_label": "ana"}])
    with pytest.raises(UserError, match=r"place_of_birth_test.jsonl:1: 'obj_label' must be"):
        read_unhelpful_names(tmp_path, "google_re", ["place_of_birth"])


BAD_DATA: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda d: d.rename(d.with_name("moved")), r"lama: is not a folder"),
    "no part": (
        lambda d: [path.rename(d / f"{path.name}_old") for path in d.iterdir() if path.is_dir()],
        r"lama: holds none of TREx, Google_RE, ConceptNet, Squad",
    ),
    "no relations": (lambda d: (d / "relations.jsonl").unlink(), r"relations.jsonl does not exist"),
    "no facts": (lambda d: [path.unlink() for path in (d / "TREx").iterdir()], r"TREx: holds no P\*.jsonl"),
    "no JSON": (lambda d: append(d / "TREx/P1.jsonl", "{nope\n"), r"P1.jsonl:4: not valid JSON"),
    "no object": (lambda d: append(d / "TREx/P1.jsonl", "[1]\n"), r"P1.jsonl:4: expected a JSON object, got list"),
    "no label": (lambda d: append(d / "TREx/P1.jsonl", '\n{"sub_label": "x"}\n'), r"P1.jsonl:5: 'obj_label' must be"),
    "half a character": (
        lambda d: append(d / "TREx/P1.jsonl", '{"sub_label": "\\ud800", "obj_label": "x"}\n'),
        r"P1.jsonl:4: holds \\ud800 to \\udfff",
    ),
    "not gzip": (lambda d: (d / "TREx/P2.jsonl.gz").write_text("x"), r"P2.jsonl.gz:1: not valid JSON"),
    "twice": (lambda d: (d / "TREx/P1.jsonl.gz").write_bytes(b""), r"P1.jsonl.gz: duplicates P1.jsonl"),
    "no template": (lambda d: (d / "TREx/P77.jsonl").write_text(""), r"P77.jsonl: relation P77 has no template"),
    "template": (
        lambda d: append(d / "relations.jsonl", '{"relation": "P3", "template": "[X] only"}\n'),
        r"relations.jsonl:3: the template must hold \[X\] and \[Y\] once each",
    ),
    "unknown relation": (
        lambda d: (d / "Google_RE/date_of_death_test.jsonl").write_text(""),
        r"date_of_death_test.jsonl: LAMA has no template for date_of_death",
    ),
    "judgments": (
        lambda d: write_lines(d / "Google_RE/place_of_birth_test.jsonl", [google_re("x", "y") | {"judgments": 1}]),
        r"place_of_birth_test.jsonl:1: 'judgments' must be a list of objects",
    ),
    "no test file": (lambda d: (d / "Squad/test.jsonl").unlink(), r"Squad: holds no test.jsonl"),
    "no sentence": (
        lambda d: append(d / "Squad/test.jsonl", '{"obj_label": "y", "masked_sentences": "[MASK]"}'),
        r"Squad/test.jsonl:3: 'masked_sentences' must be a list of sentences",
    ),
    "three sentences": (
        lambda d: append(d / "Squad/test.jsonl", '{"obj_label": "y", "masked_sentences": ["a", "b", "[MASK]"]}'),
        r"Squad/test.jsonl:3: 'masked_sentences' may hold 2 sentences at most, got 3",
    ),
    "no relation": (
        lambda d: append(d / "ConceptNet/test.jsonl", '{"obj_label": "y", "masked_sentences": ["[MASK]"]}'),
        r"ConceptNet/test.jsonl:6: 'pred' must be",
    ),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_named(case: str, tmp_path: Path) -> None:
    data = whole_lama(tmp_path / "lama")
    spoil, message = BAD_DATA[case]
    spoil(data)
    with pytest.raises(UserError, match=message) as caught:
        read_parts(data)
    assert "\n" not in str(caught.value)


def test_real_files_are_read(shared_data: Path) -> None:
    relations = read_parts(shared_data / "lama")["trex"]
    assert (len(relations), sum(len(one.facts) + one.skipped.total() for one in relations)) == (20, 17825)
    assert all(one.label and one.facts and all(fact.qid for fact in one.facts) for one in relations)


def test_a_folder_that_may_not_be_read_is_not_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "TREx").mkdir()

    def refuse(path: Path) -> list[str]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(PermissionError, match="TREx"):
        read_parts(tmp_path)
