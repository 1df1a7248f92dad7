"""Which files and models the arguments mean."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.evaluation.comparison.makers import guesses, related, typed, write_finetuned, write_lama
from trelm_ds.errors import UserError
from trelm_ds.evaluation.comparison.find import Model, find_models
from trelm_ds.evaluation.comparison.sets import SetKey

TYPING, RELATION, LAMA = SetKey("typing", "test"), SetKey("relation", "test"), SetKey("lama", "trex")


def typing(path: Path, model: str = "models/a") -> Path:
    return write_finetuned(path, "typing", typed(), guesses(typed(), 0.5, 2), model=model)


def relation(path: Path, model: str = "models/a") -> Path:
    return write_finetuned(path, "relation", related(), guesses(related(), 0.5, 2), model=model)


def found(*arguments: object) -> list[Model]:
    return find_models([str(argument) for argument in arguments])


def test_results_of_one_model_are_one_column(here: Path) -> None:
    both = found(typing(here / "t.json"), relation(here / "r.json"), typing(here / "b.json", "models/b"))
    assert [model.name for model in both] == ["a", "b"]
    assert set(both[0].sets) == {TYPING, RELATION}
    assert set(both[1].sets) == {TYPING}


def test_one_folder_by_two_ways_is_one_model(here: Path) -> None:
    (here / "models" / "a").mkdir(parents=True)
    os.symlink(here / "models" / "a", here / "link")
    models = found(typing(here / "t.json"), relation(here / "r.json", "link"), relation(here / "x.json", "models/./b"))
    assert [model.name for model in models] == ["a", "b"]


def test_a_folder_is_searched(here: Path) -> None:
    typing(here / "results" / "deep" / "t.json")
    write_lama(here / "results" / "l.json", {"P1": [1, 2]})
    (here / "results" / "config.json.d").mkdir()
    (here / "results" / "other.json").write_text("[1, 2")  # looks like no result, whatever it is
    (here / "results" / "list.json").write_text('["task", "model"]'.replace("model", "x"))
    typing(here / "results" / "t.runs" / "record.json")
    typing(here / "results" / ".hidden" / "t.json")
    (only,) = found("results")
    assert {TYPING, LAMA} <= set(only.sets)
    assert only.sets[TYPING].result == Path("results/deep/t.json")


def test_a_damaged_result_in_a_folder_is_an_error(here: Path) -> None:
    path = typing(here / "results" / "t.json")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"t\.json:\d+: not valid JSON"):
        found("results")


def test_results_of_a_model_folder_lie_in_it_or_beside_it(here: Path) -> None:
    model = here / "models" / "a"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    typing(model / "results" / "t.json", str(model))
    relation(here / "models" / "r.json")  # models/a, as given in this folder
    relation(here / "models" / "other.json", "models/b")
    (only,) = found("models/a")
    assert only.name == "a"
    assert set(only.sets) == {TYPING, RELATION}


def test_a_relative_model_may_have_been_given_elsewhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = here / "work" / "models" / "a"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    typing(here / "work" / "models" / "t.json", "models/a")
    (only,) = found("work/models/a")
    assert TYPING in only.sets
    relation(here / "work" / "models" / "r.json", "../a")  # says nothing
    assert set(found("work/models/a")[0].sets) == {TYPING}


def test_labels_name_and_join(here: Path) -> None:
    t, r, b = typing(here / "t.json"), relation(here / "r.json", "models/b"), typing(here / "b.json", "models/b")
    first, second = found(f"mine={t}", f"mine={r}", f"other={b}")
    assert (first.name, first.folders) == ("mine", ["models/a", "models/b"])
    assert set(first.sets) == {TYPING, RELATION}
    assert second.name == "other"
    twice = found(f"x={t}", f"y={t}")  # the same file under two names
    assert [model.name for model in twice] == ["x", "y"]


def test_a_file_with_a_sign_in_its_name_is_a_file(here: Path) -> None:
    assert found(typing(here / "lr=2.json"))[0].name == "a"
    assert found(f"n={typing(here / 'lr=2.json')}")[0].name == "n"


def test_names_are_as_long_as_they_must(here: Path) -> None:
    paths = ["runs/1/model", "runs/2/model", "base"]
    models = found(*(typing(here / f"{number}.json", path) for number, path in enumerate(paths)))
    assert [model.name for model in models] == ["1/model", "2/model", "base"]
    assert [model.name for model in found(here / "0.json", f"model={here / '1.json'}")] == ["1/model", "model"]


def test_a_file_named_twice_counts_once(here: Path) -> None:
    typing(here / "results" / "t.json")
    assert len(found("results", "results/t.json", here / "results" / "t.json")) == 1


def test_two_results_of_one_task_must_be_told_apart(here: Path) -> None:
    first, second = typing(here / "t1.json"), typing(here / "t2.json")
    with pytest.raises(UserError, match=r"a: .*t1\.json and .*t2\.json both have typing results; .*NAME=PATH"):
        found(first, second)
    assert len(found(f"first={first}", f"second={second}")) == 2


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("nowhere", "nowhere: no such file or folder"),
        ("=t.json", "give NAME=PATH"),
        ("x=", "give NAME=PATH"),
        ("x=nowhere", "nowhere: no such file"),
        ("empty", "empty: holds no result of `trelm evaluate`"),
        ("model", "model: no result of `trelm evaluate` in it or beside it"),
    ],
)
def test_mistakes(here: Path, argument: str, message: str) -> None:
    (here / "empty").mkdir()
    (here / "model").mkdir()
    (here / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=message):
        found(argument)
