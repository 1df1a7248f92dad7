"""Results and predictions, whole and damaged."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.comparison.makers import (
    change,
    classified,
    guesses,
    typed,
    write_finetuned,
    write_glue,
    write_lama,
)
from trelm_ds.errors import UserError
from trelm_ds.evaluation.comparison.predictions import read_predictions
from trelm_ds.evaluation.comparison.sets import EvaluatedSet, SetKey, read_result


def sets(path: Path) -> dict[SetKey, EvaluatedSet]:
    return {of.key: of for of in read_result(path).sets}


def test_a_finetuned_result(here: Path) -> None:
    path = write_finetuned(here / "t.json", "typing", typed(), guesses(typed(), 0.5, 3))
    of = sets(path)[SetKey("typing", "test")]
    assert (of.examples, of.runs, of.predictions) == (60, 3, here / "t.predictions.jsonl.gz")
    assert of.figures["micro_f1"].mean == json.loads(path.read_text())["scores"]["micro_f1"]["mean"]
    answers = read_predictions(of.predictions, "typing")[of.key]
    assert answers.gold == typed()
    assert answers.predicted == guesses(typed(), 0.5, 3)


def test_glue_has_a_set_for_each_split(here: Path) -> None:
    gold = classified()
    runs = guesses(gold, 0.5, 2)
    path = write_glue(
        here / "g.json", {"mnli": {"dev": (gold, runs), "dev_mismatched": (gold[:9], [r[:9] for r in runs])}}
    )
    of = sets(path)
    assert {key: value.examples for key, value in of.items()} == {("mnli", "dev"): 60, ("mnli", "dev_mismatched"): 9}


def test_lama_has_a_set_for_each_part_and_group(here: Path) -> None:
    path = write_lama(here / "l.json", {"P1": [1, 5, 30], "P2": [2]})
    part, uhn = sets(path).values()
    assert (part.key, part.examples, part.runs) == (("lama", "trex"), 4, None)
    assert part.figures["p_at_1"].mean == pytest.approx(1 / 6)
    assert part.figures["micro_p_at_1"].mean == 1 / 4
    assert (uhn.key, uhn.examples) == (("lama", "trex/name/uhn"), 3)
    assert uhn.data["filters of LAMA-UHN"] == "string match"
    found = read_predictions(path.with_name("l.predictions.jsonl.gz"), "lama")
    assert found[part.key].gold == ["P1", "P1", "P1", "P2"]
    assert found[part.key].predicted == [[1, 5, 30, 2]]
    assert found[uhn.key].predicted == [[1, 30, 2]]


def test_objects_of_several_tokens_are_apart(here: Path) -> None:
    record = {"part": "trex", "relation": "P1", "subject": "s", "object": "o", "texts": ["t"], "tokens": 2, "rank": 3}
    path = write_lines(here / "p.jsonl.gz", [record | {"groups": {"name": "uhn"}}])
    assert list(read_predictions(path, "lama")) == [("lama", "trex/object/multi_token")]


def test_a_renamed_result_finds_its_predictions(here: Path) -> None:
    path = write_lama(here / "l.json", {"P1": [1]})
    path.rename(here / "new.json")
    assert sets(here / "new.json")[SetKey("lama", "trex")].predictions == here / "l.predictions.jsonl.gz"
    (here / "l.predictions.jsonl.gz").rename(here / "new.predictions.jsonl.gz")
    assert sets(here / "new.json")[SetKey("lama", "trex")].predictions == here / "new.predictions.jsonl.gz"
    (here / "new.predictions.jsonl.gz").unlink()
    assert sets(here / "new.json")[SetKey("lama", "trex")].predictions is None


def test_predictions_are_looked_for_beside_the_result_only(here: Path) -> None:
    write_lama(here / "l.json", {"P1": [1]})
    path = write_lama(here / "below" / "b.json", {"P1": [1]})
    change(path, predictions="../l.predictions.jsonl.gz")
    path.with_name("b.predictions.jsonl.gz").unlink()
    assert sets(path)[SetKey("lama", "trex")].predictions is None


@pytest.mark.parametrize(
    "changes",
    [
        {"model": 3},
        {"splits": {"test": {"micro_f1": {"mean": "x", "std": None, "values": [1]}}}},
        {"splits": {"test": {"micro_f1": {"mean": float("nan"), "std": None, "values": [1]}}}},
        {
            "splits": {
                "test": {
                    "micro_f1": {"mean": 1, "std": None, "values": []},
                    "b": {"mean": 1, "std": None, "values": [1]},
                }
            }
        },
        {"splits": None},
        {"examples": {"test": -1}},
        {"examples": {}},
        {"scoring": None},
        {"scoring": {"no_relation": 3}},
        {"tasks": []},
        {"tasks": [1]},
        {"predictions": 3},
    ],
)
def test_a_result_of_another_shape_is_refused_in_one_line(here: Path, changes: dict[str, Any]) -> None:
    path = write_finetuned(here / "t.json", "typing", typed(), guesses(typed(), 0.5, 1))
    if changes == {"tasks": []}:
        assert sets(path)  # as good as none
        return
    with pytest.raises(UserError, match=r"t\.json: is no whole result of this version") as error:
        read_result(change(path, **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["[]", '{"task": "fly"}', '{"model": "m"}', "3"])
def test_other_json_is_no_result(here: Path, content: str) -> None:
    (here / "x.json").write_text(content)
    with pytest.raises(UserError, match=r"x\.json: is no result of `trelm evaluate`; give its --out file"):
        read_result(here / "x.json")


def test_an_older_lama_result_is_to_be_made_again(here: Path) -> None:
    (here / "x.json").write_text('{"task": "lama", "model": "m", "relations": {}, "p_at_1": 0.5}')
    with pytest.raises(UserError, match="make it again"):
        read_result(here / "x.json")


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_bytes(gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode()))
    return path


GOOD = {"task": "cola", "split": "dev", "index": 0, "gold": "1", "predicted": ["1", "0"]}
FACT = {
    "part": "trex",
    "relation": "P1",
    "subject": "s",
    "object": "o",
    "texts": ["t"],
    "tokens": 1,
    "rank": 3,
    "groups": {},
}


@pytest.mark.parametrize(
    ("task", "records"),
    [
        ("glue", [GOOD, GOOD]),  # the first example twice
        ("glue", [GOOD, GOOD | {"index": 1, "predicted": ["1"]}]),
        ("glue", [GOOD | {"gold": None}]),
        ("glue", [GOOD | {"predicted": [{}]}]),
        ("glue", [GOOD | {"predicted": 1}]),
        ("glue", [FACT]),
        ("glue", [[]]),
        ("lama", [GOOD]),
        ("lama", [FACT | {"rank": 0}]),
        ("lama", [FACT | {"rank": "x"}]),
        ("lama", [FACT | {"groups": []}]),
        ("lama", [FACT | {"texts": None}]),
        ("lama", [FACT | {"tokens": "x"}]),
    ],
)
def test_other_predictions_are_refused_with_their_line(here: Path, task: str, records: list[Any]) -> None:
    path = write_lines(here / "p.jsonl.gz", records)
    with pytest.raises(UserError, match=rf"p\.jsonl\.gz:{len(records)}: is no prediction"):
        read_predictions(path, task)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-20], "damaged or truncated"),
        (lambda data: gzip.compress(gzip.decompress(data)[:-9]), ":60: not valid JSON"),
        (lambda data: gzip.compress(b"\n" + gzip.decompress(data)), ":1: is blank"),
        (lambda data: gzip.compress(b"\xff" + gzip.decompress(data)), "not valid UTF-8"),
    ],
)
def test_damaged_predictions(here: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    write_finetuned(here / "t.json", "typing", typed(), guesses(typed(), 0.5, 2))
    path = here / "t.predictions.jsonl.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        read_predictions(path, "typing")


def test_blank_last_lines_and_a_byte_order_mark_are_nothing(here: Path) -> None:
    write_finetuned(here / "t.json", "typing", typed(), guesses(typed(), 0.5, 2))
    path = here / "t.predictions.jsonl.gz"
    before = read_predictions(path, "typing")
    path.write_bytes(b"\xef\xbb\xbf" + gzip.decompress(path.read_bytes()) + b"\n\n")  # and unpacked
    assert read_predictions(path, "typing") == before
