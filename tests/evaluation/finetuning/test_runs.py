"""All runs of a task: what is done is not done again, and what is chosen."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from tests.evaluation.finetuning.conftest import options, read_task
from tests.logged import warns
from trelm_ds.errors import UserError
from trelm_ds.evaluation.finetuning.folder import open_pretrained
from trelm_ds.evaluation.finetuning.options import FinetuneOptions
from trelm_ds.evaluation.finetuning.runs import RECORD, TaskRuns, prediction_lines, prepare_task, run_task
from trelm_ds.evaluation.finetuning.tracking import TaskTracking
from trelm_ds.evaluation.finetuning.trainer import FineTuning
from trelm_ds.evaluation.finetuning.workers import Alone
from trelm_ds.evaluation.tasks import Task, read_relation
from trelm_ds.evaluation.tasks.relation_extraction import score_relation

LR = 2e-3


def go(
    tiny_tasks: Path,
    folder: Path,
    name: str = "cola",
    lrs: tuple[float, ...] = (LR,),
    seeds: int = 2,
    given: FinetuneOptions | None = None,
    model: str = "bert",
    task: Task | None = None,
) -> TaskRuns:
    opened, mine = open_pretrained(tiny_tasks / model), task or read_task(tiny_tasks, name)
    tuning = prepare_task(mine, opened, given or options(), Alone(torch.device("cpu")))
    silent = TaskTracking(folder, None, "x", "x", {}, enabled=False)
    return run_task(tuning, opened.digest, lrs, range(1, seeds + 1), folder, silent)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    """(lr, seed) of every run that is really made."""
    made: list[tuple[float, int]] = []
    run = FineTuning.run

    def counting(self: FineTuning, lr: float, seed: int, *rest: object) -> object:
        made.append((lr, seed))
        return run(self, lr, seed, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(FineTuning, "run", counting)
    return made


def test_what_is_done_is_not_done_again(tiny_tasks: Path, tmp_path: Path, trained: list[tuple[float, int]]) -> None:
    first = go(tiny_tasks, tmp_path)
    assert trained == [(LR, 1), (LR, 2)]
    more = go(tiny_tasks, tmp_path, seeds=3)
    assert trained == [(LR, 1), (LR, 2), (LR, 3)]
    assert more.records[:2] == first.records


def test_a_killed_run_is_made_again(tiny_tasks: Path, tmp_path: Path, trained: list[tuple[float, int]]) -> None:
    undisturbed = go(tiny_tasks, tmp_path / "a")
    go(tiny_tasks, tmp_path / "b", seeds=1)
    partial = tmp_path / "b" / "cola-lr0.002-seed2"
    partial.mkdir()
    (partial / RECORD).write_text('{"identity": {')
    trained.clear()
    with warns("cola-lr0.002-seed2/record.json: damaged; this run is made again"):
        again = go(tiny_tasks, tmp_path / "b")
    assert trained == [(LR, 2)]
    for one, other in zip(again.records, undisturbed.records, strict=True):
        assert dataclasses.replace(one, seconds=0) == dataclasses.replace(other, seconds=0)


@pytest.mark.parametrize(
    ("change", "named"), [("options", "options"), ("model", "model"), ("data", "data"), ("scoring", "scoring")]
)
def test_a_record_of_something_else_is_not_taken(
    change: str, named: str, tiny_tasks: Path, tmp_path: Path, trained: list, caplog: pytest.LogCaptureFixture
) -> None:
    go(tiny_tasks, tmp_path, seeds=1)
    trained.clear()
    with caplog.at_level(logging.INFO, "trelm_ds"):
        if change == "options":
            go(tiny_tasks, tmp_path, seeds=1, given=options(weight_decay=0.5))
        elif change == "model":
            go(tiny_tasks, tmp_path, seeds=1, model="bare")
        elif change == "scoring":
            go(
                tiny_tasks,
                tmp_path,
                seeds=1,
                task=dataclasses.replace(read_task(tiny_tasks, "cola"), scoring={"a": "b"}),
            )
        else:
            task = read_task(tiny_tasks, "cola")
            go(tiny_tasks, tmp_path, seeds=1, task=dataclasses.replace(task, train=task.train[::-1]))
    assert trained == [(LR, 1)]
    assert f"made with another {named}; this run is made again" in caplog.text


def test_scores_without_another_relation_are_computed_again(tiny_tasks: Path, tmp_path: Path) -> None:
    folder = tiny_tasks / "relation"
    found = [
        go(tiny_tasks, tmp_path, name="relation", seeds=1, given=options(epochs=4), task=read_relation(folder, name))
        for name in (None, "home")
    ]
    for done, name in zip(found, ("no_relation", "home"), strict=True):
        gold = [example.target for example in read_relation(folder).evaluated["test"]]
        scores = score_relation(gold, done.records[0].predictions["test"], name)
        assert done.result["scores"]["micro_f1"]["mean"] == scores["micro_f1"]
        assert done.result["scoring"] == {"no_relation": name}


def test_a_result_in_the_models_folder_makes_no_other_model(tiny_tasks: Path, tmp_path: Path) -> None:
    model = tmp_path / "bert"
    shutil.copytree(tiny_tasks / "bert", model)
    before = open_pretrained(model).digest
    (model / "glue.json").write_text("{}")
    (model / "notes.txt").write_text("good")
    assert open_pretrained(model).digest == before
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(before)
    config = model / "config.json"
    config.write_text(config.read_text().replace('"layer_norm_eps": 1e-12', '"layer_norm_eps": 1e-5'))
    assert open_pretrained(model).digest != before


def test_of_several_learning_rates_the_best_on_dev_is_reported(tiny_tasks: Path, tmp_path: Path) -> None:
    done = go(tiny_tasks, tmp_path, lrs=(1e-7, LR, 1e30), given=options(epochs=15), name="sts-b")
    result = done.result
    assert result["lr"] == LR
    assert [record.lr for record in done.records] == [LR, LR]
    assert [entry["lr"] for entry in result["grid"]] == [1e-7, LR, 1e30]
    assert result["grid"][1]["dev"]["mean"] == result["splits"]["dev"]["pearson"]["mean"]
    assert result["grid"][0]["dev"]["mean"] < result["grid"][1]["dev"]["mean"]
    assert result["grid"][2]["dev"] is None  # its losses were not finite
    assert len(result["runs"]) == 2


def test_no_learning_rate_works(tiny_tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sts-b: the loss was not finite with --lr 1e\+30 1e\+31; lower it"):
        go(tiny_tasks, tmp_path, lrs=(1e30, 1e31), seeds=1, name="sts-b")


def test_the_result_says_how_it_was_made(tiny_tasks: Path, tmp_path: Path) -> None:
    done = go(tiny_tasks, tmp_path, name="mnli")
    result = json.loads(json.dumps(done.result))
    assert result["metric"] == "accuracy"
    assert list(result["splits"]) == ["dev", "dev_mismatched"]
    values = [record.scores["dev"]["accuracy"] for record in done.records]
    assert result["scores"]["accuracy"]["values"] == values
    assert result["scores"]["accuracy"]["mean"] == pytest.approx(sum(values) / 2)
    assert result["scores"]["accuracy"]["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert result["baseline"]["dev"]["accuracy"] == pytest.approx(1 / 3)
    assert result["examples"] == {"train": 24, "dev": 24, "dev_mismatched": 24}


def test_predictions(tiny_tasks: Path, tmp_path: Path) -> None:
    task, done = read_task(tiny_tasks, "typing"), go(tiny_tasks, tmp_path, name="typing")
    lines = prediction_lines(task, done.records)
    assert len(lines) == 96
    assert lines[3] == {
        "task": "typing",
        "split": "dev",
        "index": 3,
        "gold": ["place", "workplace"],
        "predicted": [record.predictions["dev"][3] for record in done.records],
    }
    for seed, record in enumerate(done.records):  # the scores can be computed from them again
        gold, predicted = (
            [frozenset(pick(line)) for line in lines if line["split"] == "test"]
            for pick in (lambda line: line["gold"], lambda line, seed=seed: line["predicted"][seed])
        )
        assert task.score(gold, predicted) == record.scores["test"]


def test_a_run_folder_that_cannot_be_written(tiny_tasks: Path, tmp_path: Path) -> None:
    (tmp_path / "cola-lr0.002-seed1").write_text("a file")
    with pytest.raises(UserError, match=r"cola-lr0.002-seed1/record.json: cannot be written"):
        go(tiny_tasks, tmp_path, seeds=1)
