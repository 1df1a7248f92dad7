"""An evaluation as the command makes it: alone, with ranks, killed, and in MLflow."""

from __future__ import annotations

import errno
import gzip
import json
import os
import sqlite3
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import run_distributed_test
from tests.evaluation.finetuning.conftest import options, read_task
from tests.logged import warns
from tests.tracking.runs import runs_of
from trelm_ds.errors import UserError
from trelm_ds.evaluation.finetuning.evaluation import Evaluation, average, evaluate
from trelm_ds.evaluation.finetuning.report import format_result, plot_result
from trelm_ds.evaluation.finetuning.trainer import EpochRecord
from trelm_ds.evaluation.finetuning.workers import Alone, Together
from trelm_ds.files import lock
from trelm_ds.run_folder import LOCK
from trelm_ds.tracking import sync_all
from trelm_ds.tracking.sender import Progress

HERE = Alone(torch.device("cpu"))


def asked(tiny_tasks: Path, out: Path, *names: str, **changes: Any) -> Evaluation:
    given = {
        "name": names[0] if len(names) == 1 and names[0] in ("typing", "relation") else "glue",
        "model": tiny_tasks / "bert",
        "data": tiny_tasks,
        "out": out,
        "tasks": {name: partial(read_task, tiny_tasks, name) for name in names},
        "options": {name: options() for name in names},
        "lrs": [2e-3],
        "seeds": [1, 2],
        "tracks": False,
    }
    return Evaluation(**given | changes)  # type: ignore[arg-type]


def test_a_result_on_disk(tiny_tasks: Path, tmp_path: Path) -> None:
    result = evaluate(asked(tiny_tasks, tmp_path / "typing.json", "typing"), HERE)
    assert json.loads((tmp_path / "typing.json").read_text()) == json.loads(json.dumps(result))
    assert result["task"] == "typing"
    assert set(result["scores"]) == {f"{a}_{b}" for a in ("micro", "macro") for b in ("precision", "recall", "f1")}
    with gzip.open(tmp_path / result["predictions"], "rt") as stream:
        assert len(stream.readlines()) == 96
    shown = format_result(result)
    assert f"{100 * result['scores']['micro_f1']['mean']:.1f} ± " in shown
    plot_result(result | {"model": "a model of 5 $_{$"}, tmp_path / "typing.png")
    assert (tmp_path / "typing.png").read_bytes().startswith(b"\x89PNG")


def test_glue_and_its_average(tiny_tasks: Path, tmp_path: Path) -> None:
    result = evaluate(asked(tiny_tasks, tmp_path / "glue.json", "cola", "mnli"), HERE)
    cola, mnli = (result["tasks"][name]["splits"] for name in ("cola", "mnli"))
    numbers = [cola["dev"]["matthews"], mnli["dev"]["accuracy"], mnli["dev_mismatched"]["accuracy"]]
    assert result["average"]["numbers"] == 3
    assert result["average"]["mean"] == pytest.approx(sum(number["mean"] for number in numbers) / 3)
    assert result["average"]["values"][1] == pytest.approx(sum(number["values"][1] for number in numbers) / 3)
    shown = format_result(result)
    assert "of 3 of the nine numbers" in shown
    assert shown.count("dev_mismatched") == 1
    plot_result(result, tmp_path / "glue.png")


def test_the_papers_average_has_nine_numbers() -> None:
    """RoBERTa's row of Table 3, 86.4 (it prints 86.4 for 86.43)."""
    row = {"qqp": 91.9, "qnli": 92.8, "sst-2": 94.8, "cola": 63.6, "sts-b": 91.2, "mrpc": 90.2, "rte": 78.7}

    def task(*values: float) -> dict[str, Any]:
        splits = {str(number): {"m": {"values": [value]}} for number, value in enumerate(values)}
        return {"metric": "m", "splits": splits}

    of = average({"mnli": task(87.5, 87.3)} | {name: task(value) for name, value in row.items()})
    assert of["numbers"] == 9
    assert f"{of['mean']:.1f}" == "86.4"


def test_what_was_done_before_a_kill_is_there(tiny_tasks: Path, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    wanted = asked(tiny_tasks, tmp_path / "glue.json", "cola", "mrpc")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trelm_ds.evaluation.finetuning.evaluation.run_task", _stopping_at("mrpc", KilledError))
        with pytest.raises(KilledError):
            evaluate(wanted, HERE)
    assert list(json.loads((tmp_path / "glue.json").read_text())["tasks"]) == ["cola"]
    assert list(evaluate(wanted, HERE)["tasks"]) == ["cola", "mrpc"]


def _stopping_at(name: str, error: type[Exception]) -> Any:
    from trelm_ds.evaluation.finetuning.runs import run_task

    def run(tuning: Any, *rest: Any) -> Any:
        if tuning.task.name == name:
            raise error
        return run_task(tuning, *rest)

    return run


def test_two_commands_with_one_result(tiny_tasks: Path, tmp_path: Path) -> None:
    wanted = asked(tiny_tasks, tmp_path / "cola.json", "cola")
    wanted.folder.mkdir()
    with lock(wanted.folder / LOCK, "x"), pytest.raises(UserError, match=r"--out: .*cola.runs is in use by another"):
        evaluate(wanted, HERE)


def test_a_mistake_in_the_last_task_shows_before_the_first_is_trained_for(tiny_tasks: Path, tmp_path: Path) -> None:
    def broken() -> Any:
        raise UserError("mrpc/dev.tsv:3: bad")

    wanted = asked(tiny_tasks, tmp_path / "glue.json", "cola", "mrpc")
    wanted.tasks["mrpc"] = broken
    with pytest.raises(UserError, match=r"mrpc/dev.tsv:3: bad"):
        evaluate(wanted, HERE)
    assert not list(wanted.folder.rglob("record.json"))


def _evaluate_on_ranks(tiny_tasks: Path, out: Path, names: tuple[str, ...], batch_size: int) -> dict[str, Any]:
    from trelm_ds.distributed import connect, disconnect

    ranks = connect()
    try:
        settings = {name: options(batch_size=batch_size) for name in names}
        return evaluate(asked(tiny_tasks, out, *names, options=settings, seeds=[1]), Together(ranks))
    finally:
        disconnect()


def _fails_on_ranks(tiny_tasks: Path, out: Path) -> str:
    with pytest.raises(UserError) as found:
        _evaluate_on_ranks(tiny_tasks, out, ("cola",), 8)
    return str(found.value)


def test_what_fails_on_the_rank_that_writes_is_one_line_on_all(tiny_tasks: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cola.runs"
    folder.mkdir()
    with lock(folder / LOCK, "x"):
        found = run_distributed_test(_fails_on_ranks, 2, tiny_tasks, tmp_path / "cola.json")
    assert found == [f"--out: {folder} is in use by another process; wait for it or choose another"] * 2
    (folder / "cola-lr0.002-seed1").write_text("")
    found = run_distributed_test(_fails_on_ranks, 2, tiny_tasks, tmp_path / "cola.json")
    assert found[0].endswith("record.json: cannot be written (File exists)")
    assert found[0] == found[1]


def test_ranks_share_the_work(tiny_tasks: Path, tmp_path: Path) -> None:
    """Without dropout three ranks compute what one does; the last batch has an example for one of them only."""
    names, batch_size = ("mnli", "sts-b"), 23  # of 24
    alone = {name: options(batch_size=batch_size) for name in names}
    one = evaluate(asked(tiny_tasks, tmp_path / "one.json", *names, options=alone, seeds=[1]), HERE)
    results = run_distributed_test(_evaluate_on_ranks, 3, tiny_tasks, tmp_path / "three.json", names, batch_size)
    assert results[0] == results[1] == results[2]
    assert json.loads((tmp_path / "three.json").read_text()) == json.loads(json.dumps(results[0]))
    for name in names:
        for ours, theirs in zip(one["tasks"][name]["runs"], results[0]["tasks"][name]["runs"], strict=True):
            for before, after in zip(ours["epochs"], theirs["epochs"], strict=True):
                assert EpochRecord(**after).loss == pytest.approx(EpochRecord(**before).loss, rel=1e-4)
                assert after["dev"] == pytest.approx(before["dev"], abs=1e-3)


@pytest.mark.slow
def test_mlflow_has_a_run_for_the_command_and_one_below_it_for_each_of_its_runs(
    tiny_tasks: Path, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/store.db"
    changes = {"tracks": True, "tracking_uri": uri, "experiment": "tasks"}
    result = evaluate(asked(tiny_tasks, tmp_path / "cola.json", "cola", **changes), HERE)
    evaluate(asked(tiny_tasks, tmp_path / "cola.json", "cola", **changes), HERE)  # nothing is doubled
    by_name = {run.info.run_name: run for run in runs_of(uri, "tasks")}
    assert set(by_name) == {"glue bert", "cola-lr0.002-seed1", "cola-lr0.002-seed2"}
    parent = by_name.pop("glue bert")
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["cola/matthews"] == result["tasks"]["cola"]["scores"]["matthews"]["mean"]
    for seed, child in enumerate(by_name.values()):
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.params["options.epochs"] == "2"
        assert child.info.status == "FINISHED"
        assert "best/dev/matthews" in child.data.metrics
        assert seed < 2


@pytest.mark.slow
def test_runs_of_a_store_that_was_locked_are_sent_by_one_sync(
    tiny_tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trelm_ds.tracking.uploader._CLOSING_S", 1.0)
    monkeypatch.setattr("trelm_ds.tracking.store._BUSY_S", 0.5)
    uri, wanted = f"sqlite:///{tmp_path}/store.db", {"tracks": True, "experiment": "tasks"}
    evaluate(asked(tiny_tasks, tmp_path / "cola.json", "cola", **wanted, tracking_uri=uri, seeds=[1]), HERE)
    locked = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    locked.execute("BEGIN EXCLUSIVE")
    with warns(f"`trelm sync {tmp_path / 'again.runs'}` sends them"):
        evaluate(asked(tiny_tasks, tmp_path / "again.json", "cola", **wanted, tracking_uri=uri), HERE)
    locked.close()
    sync_all(tmp_path / "again.runs")
    runs = runs_of(uri, "tasks")
    assert [run.info.status for run in runs] == ["FINISHED"] * 5  # 1 with 1 below it, 1 with 2
    below = Counter(run.data.tags.get("mlflow.parentRunId") for run in runs)
    assert sorted(below.values()) == [1, 2, 2]


@pytest.mark.parametrize("folder", [".", "cola-lr0.002-seed2"])
def test_a_disk_that_is_full_is_one_line(
    folder: str, tiny_tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = asked(tiny_tasks, tmp_path / "x.json", "cola", tracks=True, tracking_uri=f"sqlite:///{tmp_path}/store.db")
    write, full = Progress.write, wanted.folder / folder

    def refuse(self: Progress, run: Path) -> None:
        if run == full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, run)

    monkeypatch.setattr(Progress, "write", refuse)
    with pytest.raises(UserError, match=f"^--out: {full} cannot be written: No space left on device"):
        evaluate(wanted, HERE)


def test_a_store_that_cannot_be_is_one_line(tiny_tasks: Path, tmp_path: Path) -> None:
    wanted = asked(tiny_tasks, tmp_path / "x.json", "cola", tracks=True, tracking_uri="gopher://x")
    with pytest.raises(UserError, match=r"^--tracking-uri: cannot use gopher://x"):
        evaluate(wanted, HERE)
    assert os.listdir(wanted.folder) == []
