"""`trelm compare` from end to end, on results that `trelm evaluate` wrote and on damaged ones."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from tests.e2e.launch import trelm
from tests.evaluation.comparison.makers import change, guesses, typed, write_finetuned, write_lama
from tests.evaluation.tiny_tasks import write_glue, write_model, write_relation, write_typing
from trelm_ds.evaluation import Alone, Evaluation, FinetuneOptions, evaluate, read_glue, read_relation, read_typing


def typing(path: Path, model: str, share: float) -> Path:
    return write_finetuned(path, "typing", typed(), guesses(typed(), share, 5), model=model)


def refused(*arguments: object) -> str:
    """The one line of an error."""
    done = trelm("compare", *arguments)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert done.stdout == ""
    return lines[0]


def test_a_page_of_two_models(here: Path) -> None:
    low, high = typing(here / "low.json", "models/low", 0.1), typing(here / "high.json", "models/high", 0.9)
    given = ["compare", low, high, "--reference", "high", "--resamples", "500", "--seed", "3"]
    shown = trelm(*given)
    assert shown.returncode == 0, shown.stderr
    assert "▼ worse than high: paired bootstrap over examples and seeds (500 resamples, seed 3)" in shown.stdout
    assert shown.stderr.count("\n") == 1  # the bar
    page, text = here / "c.html", here / "c.md"
    assert trelm(*given, "--out", text).stdout == f"{shown.stdout}{text} written\n"
    assert text.read_text() + "\n" == shown.stdout
    assert trelm(*given, "--out", page).returncode == 0
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert "micro F1" in page.read_text()


def test_results_that_fine_tuning_wrote(here: Path) -> None:
    """The formats are those of `trelm evaluate`, not of what these tests make."""
    write_model(here / "m")
    write_typing(here / "typing")
    write_relation(here / "relation")
    write_glue(here / "glue")
    reads = {
        "typing": {"typing": partial(read_typing, here / "typing")},
        "relation": {"relation": partial(read_relation, here / "relation", None)},
        "glue": {name: partial(read_glue, here / "glue", name) for name in ("mrpc", "sts-b")},
    }
    for name, tasks in reads.items():
        given = {
            "name": name,
            "model": here / "m",
            "data": here / name,
            "out": here / f"{name}.json",
            "tasks": tasks,
            "options": dict.fromkeys(tasks, FinetuneOptions(epochs=1, batch_size=48, patience=0)),
            "lrs": [2e-3],
            "seeds": [1, 2],
            "tracks": False,
        }
        evaluate(Evaluation(**given), Alone(torch.device("cpu")))
    again = [f"again={name}.json" for name in reads]
    done = trelm("compare", "m", *again, "--all", "--resamples", "200")
    assert done.returncode == 0, done.stderr
    assert "not compared" not in done.stdout
    # Two splits of typing's six metrics and of relation's seven, two metrics of each of GLUE's two, and their average.
    assert f"for the {2 * 6 + 2 * 7 + 2 * 2 + 1} comparisons made" in done.stdout


def test_results_that_lama_wrote(here: Path) -> None:
    makers = pytest.importorskip("tests.evaluation.lama.makers", reason="the LAMA of several parts is not here")
    from trelm_ds.evaluation import write_lama as write

    data = makers.write_facts(here / "lama", {"P1": [("ana", "paris"), ("bob", "rome"), ("eve", "oslo")]})
    for name, favourites in (("m1", ["paris", "rome", "oslo"]), ("m2", ["oslo", "rome", "berlin"])):
        write(makers.evaluated(makers.bert_folder(here / name, favourites), data), here / f"{name}.json")
    done = trelm("compare", "m1", "m2", "--all", "--resamples", "200")
    assert done.returncode == 0, done.stderr
    assert "not compared" not in done.stdout
    assert "for the 9 comparisons made" in done.stdout  # three metrics, over relations and over facts, and of UHN


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: [NAME=]MODEL|RESULT"),
        (["nowhere"], "nowhere: no such file or folder"),
        (["t.predictions.jsonl.gz"], "t.predictions.jsonl.gz: not valid UTF-8"),
        (["damaged.json"], "damaged.json:1: not valid JSON"),
        (["other.json"], "other.json: is no result of `trelm evaluate`"),
        (["half.json"], "half.json: is no whole result of this version's `trelm evaluate` (lacks 'model')"),
        (["t.json", "broken.json"], "broken.predictions.jsonl.gz:1: damaged or truncated file"),
        (["t.json", "--out", "c.pdf"], "--out: c.pdf must end in .md or .html"),
        (["t.json", "--out", "nowhere/c.md"], "--out: give a file such as comparison.html in an existing folder"),
        (["t.json", "--out", "/proc/c.md"], "--out: /proc cannot be written"),
        (["t.json", "--out", "folder.md"], "--out: folder.md is a folder"),
        (["t.json", "--reference", "x"], "--reference: 'x' is none of the models: a"),
        (["t.json", "--resamples", "9"], "--resamples: must be at least 100, got 9"),
        (["t.json", "--seed", "-1"], "--seed: must not be negative"),
        (["t.json", "copy.json"], "a: t.json and copy.json both have typing results"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(here: Path, arguments: list[str], message: str) -> None:
    typing(here / "t.json", "a", 0.5)
    typing(here / "copy.json", "a", 0.5)
    typing(here / "broken.json", "b", 0.5)
    (here / "broken.predictions.jsonl.gz").write_bytes((here / "broken.predictions.jsonl.gz").read_bytes()[:20])
    (here / "damaged.json").write_text('{"task": "typing", "model": ')
    (here / "other.json").write_text("{}")
    change(write_lama(here / "half.json", {"P1": [1]}))
    (here / "half.json").write_text((here / "half.json").read_text().replace('"model"', '"m"'))
    (here / "folder.md").mkdir()
    assert message in refused(*arguments)
