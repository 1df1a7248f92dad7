"""Which MLflow run gets the entries: experiments that were deleted, spools that were lost, folders that were copied."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.tracking.mlflow_server import MlflowServer
from tests.tracking.runs import Told, check_arrived_once, point, runs_of, tracked, until
from trelm_ds.errors import UserError
from trelm_ds.run_folder import PROGRESS, SPOOL
from trelm_ds.tracking import sync
from trelm_ds.tracking.spool import read_spool


@pytest.fixture
def client(store: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{store}")


def train(run: Path, uri: str, steps: range, **more: Any) -> None:
    tracker = tracked(run, uri, steps.start - 1, **more)
    for step in steps:
        tracker.log(step, point(step))
    tracker.end("FINISHED")


@pytest.fixture
def refused(run: Path, store: Path, client: Any, told: Told) -> str:
    """The address of a store in which the experiment was deleted; a run has two points for it."""
    experiment = client.create_experiment("trelm")
    client.delete_experiment(experiment)
    uri = f"sqlite:///{store}"
    tracker = tracked(run, uri)
    for step in (1, 2):
        tracker.log(step, point(step))
    until(lambda: told.says("training goes on"))
    tracker.end("KILLED")
    assert told.says(f"{uri}: the experiment 'trelm' was deleted in MLflow; restore it there")
    assert told.says(f"`mlflow experiments restore -x {experiment}`")
    assert told.says("--tracking.experiment NAME when the run continues")
    assert told.says(f"`trelm sync {run} --experiment NAME`")
    with pytest.raises(UserError, match=r"'trelm' was deleted in MLflow; .* 4 entries of "):
        sync(run)
    return uri


def test_a_deleted_experiment_can_be_restored(refused: str, run: Path, client: Any) -> None:
    client.restore_experiment(client.get_experiment_by_name("trelm").experiment_id)
    train(run, refused, range(3, 5))
    check_arrived_once(refused, run, [1, 2, 3, 4])


def test_a_run_of_a_deleted_experiment_goes_on_in_another(refused: str, run: Path, told: Told) -> None:
    train(run, refused, range(3, 5), experiment="other")
    check_arrived_once(refused, run, [1, 2, 3, 4], "other")
    assert not told.says("where it stays")
    train(run, refused, range(5, 6))
    check_arrived_once(refused, run, [1, 2, 3, 4, 5], "other")
    assert told.says("MLflow has this run in the experiment 'other', where it stays")


def test_sync_takes_a_run_of_a_deleted_experiment_to_another(refused: str, run: Path) -> None:
    assert sync(run, experiment="other") == (4, refused)
    assert check_arrived_once(refused, run, [1, 2], "other").info.status == "KILLED"
    assert sync(run)[0] == 0


@pytest.mark.slow
def test_a_server_says_so_too(run: Path, server: MlflowServer, told: Told) -> None:
    from mlflow import MlflowClient

    server.start()
    client = MlflowClient(server.uri)
    experiment = client.create_experiment("trelm")
    client.delete_experiment(experiment)
    tracker = tracked(run, server.uri)
    tracker.log(1, point(1))
    until(lambda: told.says("training goes on"))
    assert told.says(f"warning: MLflow: {server.uri}: the experiment 'trelm' was deleted in MLflow")
    tracker.end("KILLED")
    assert sync(run, experiment="other")[0] == 3
    check_arrived_once(server.uri, run, [1], "other")


def test_an_experiment_that_is_deleted_and_restored_under_a_run_gets_nothing_twice(
    run: Path, store: Path, client: Any, told: Told
) -> None:
    uri = f"sqlite:///{store}"
    train(run, uri, range(1, 4))
    (before,) = runs_of(uri)
    client.delete_experiment(before.info.experiment_id)
    tracker = tracked(run, uri, 3)
    tracker.log(4, point(4))
    until(lambda: told.says("'trelm' was deleted in MLflow"))
    client.restore_experiment(before.info.experiment_id)
    tracker.end("FINISHED")
    after = check_arrived_once(uri, run, [1, 2, 3, 4])
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")


def test_a_run_without_its_spool_goes_on_with_other_settings(run: Path, store: Path, client: Any) -> None:
    uri = f"sqlite:///{store}"
    train(run, uri, range(1, 6), world_size=2)
    (before,) = runs_of(uri)
    key = next(read_spool(run / SPOOL)).content["key"]
    (run / SPOOL).unlink()
    tracker = tracked(run, uri, 3, key, world_size=4)  # of a checkpoint at step 3
    until(lambda: client.get_run(before.info.run_id).info.status == "RUNNING")
    for step in range(4, 8):
        tracker.log(step, point(step))
    tracker.end("FINISHED")
    (after,) = runs_of(uri)
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")
    assert (after.data.params["world_size"], after.data.tags["continued.world_size"]) == ("2", "4")
    assert [found.step for found in client.get_metric_history(after.info.run_id, "loss")] == [1, 2, 3, 4, 5, 6, 7]


def test_progress_of_a_lost_spool_is_not_taken_for_that_of_the_next(run: Path, store: Path, told: Told) -> None:
    """The second process is killed before it has sent anything; by the third, its spool is longer than the first."""
    uri = f"sqlite:///{store}"
    train(run, uri, range(1, 4))
    key = next(read_spool(run / SPOOL)).content["key"]
    (run / SPOOL).unlink()
    with contextlib.closing(sqlite3.connect(store)) as database:
        database.execute("BEGIN EXCLUSIVE")
        lost = tracked(run, uri, 1, key)
        for step in range(2, 9):
            lost.log(step, point(step))
        lost.end("KILLED")
    assert sync(run)[0] == 9
    (found,) = runs_of(uri)
    from mlflow import MlflowClient

    history = MlflowClient(uri).get_metric_history(found.info.run_id, "loss")
    assert sorted(item.step for item in history) == list(range(1, 9))


def test_a_copied_run_folder_gets_a_run_of_its_own(run: Path, store: Path, told: Told, tmp_path: Path) -> None:
    uri = f"sqlite:///{store}"
    train(run, uri, range(1, 6))
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    with pytest.raises(UserError, match=f"copy: is a copy of {run}; sync that, or continue this"):
        sync(copy)
    train(copy, uri, range(4, 8), world_size=4)  # of a checkpoint at step 3
    assert told.says(f"{copy} is a copy of {run}; it gets an MLflow run of its own")
    train(run, uri, range(6, 10))
    train(copy, uri, range(8, 9), world_size=4)
    found = {item.info.run_name: item for item in runs_of(uri)}
    assert found.keys() == {"run", "copy"}
    tags = found["copy"].data.tags
    assert tags["trelm.copied_from"] == str(run)
    assert tags["trelm.copied_from_key"] == found["run"].data.tags["trelm.run_key"]
    assert tags["continued.world_size"] == "4"
    from mlflow import MlflowClient

    for name, last in (("run", 9), ("copy", 8)):
        history = MlflowClient(uri).get_metric_history(found[name].info.run_id, "loss")
        assert sorted(item.step for item in history) == list(range(1, last + 1))


def test_a_moved_run_folder_stays_the_same_run(run: Path, store: Path, told: Told, tmp_path: Path) -> None:
    uri = f"sqlite:///{store}"
    train(run, uri, range(1, 4))
    moved = run.rename(tmp_path / "moved")
    train(moved, uri, range(4, 6))
    run.mkdir()
    train(run, uri, range(1, 2), experiment="another")  # a new run where it was
    train(moved, uri, range(6, 8))
    check_arrived_once(uri, moved, list(range(1, 8)))
    assert not told.says("is a copy")
    assert (moved / PROGRESS).is_file()
