"""MLflow over a spool, with the real thing: killed servers, lost answers, killed processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.forked import FORKED, free_port, start
from tests.tracking.mlflow_server import LossyProxy, MlflowServer
from tests.tracking.runs import Told, check_arrived_once, point, runs_of, sent, tracked, until
from trelm_ds.errors import UserError
from trelm_ds.run_folder import PROGRESS, SPOOL
from trelm_ds.tracking import sync, uploader
from trelm_ds.tracking.mlflow_run import MlflowRun, source_tags
from trelm_ds.tracking.spool import Spool, read_spool


@pytest.mark.slow
def test_a_server_that_is_down_then_killed_under_load_then_back_gets_everything_once(
    run: Path, server: MlflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "config.yaml").write_text("a: 1\n")
    tracker = tracked(run, server.uri, world_size=2)  # nobody listens yet
    tracker.log_file("config.yaml")
    for step in range(1, 501):
        tracker.log(step, point(step))
    until(lambda: "training goes on" in capsys.readouterr().err)
    assert sent(run) == 0
    server.start()
    until(lambda: sent(run) > 0)
    step = 500
    before = sent(run)
    while sent(run) < before + 40_000:  # under load: points come while others are sent
        step += 1
        tracker.log(step, point(step))
        time.sleep(0.002)
    server.kill()
    last = step + 50
    for step in range(last - 49, last + 1):
        tracker.log(step, point(step))
    server.start()
    tracker.end("FINISHED")
    found = check_arrived_once(server.uri, run, list(range(1, last + 1)))
    assert found.info.status == "FINISHED"
    assert found.data.params["world_size"] == "2"
    assert found.data.tags["from"] == "a test"
    from mlflow import MlflowClient

    assert [item.path for item in MlflowClient(server.uri).list_artifacts(found.info.run_id)] == ["config.yaml"]
    told = capsys.readouterr().err
    assert "MLflow is back" in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_lost_answers_do_not_double_anything(run: Path, server: MlflowServer) -> None:
    """The server has done what was asked, the client saw a broken connection: also for the run's creation."""
    server.start()
    proxy = LossyProxy(server)
    tracker = tracked(run, proxy.uri)
    for step in range(1, 6):
        tracker.log(step, point(step))
        until(lambda: sent(run) == (run / SPOOL).stat().st_size)
    tracker.end("FINISHED")
    proxy.close()
    assert {path.rsplit("/", 1)[-1] for path in proxy.lost} >= {"create", "log-batch", "update"}
    assert len([path for path in proxy.lost if path.endswith("log-batch")]) >= 5
    check_arrived_once(server.uri, run, [1, 2, 3, 4, 5])


def _train(run: Path, uri: str, begin: int, end: int, calls: int = 0) -> None:
    """What a training process does: continues from a step and repeats those after it.

    It dies at a certain call if `calls` says so: where they are even, before it, else after it but before its answer.
    """
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    if calls:
        from mlflow import MlflowClient

        real, left = MlflowClient.log_batch, iter(range(calls, 0, -1))

        def dies(*arguments: Any, **more: Any) -> None:
            last = next(left) == 1
            if not last or calls % 2:
                real(*arguments, **more)
            if last:
                os._exit(1)

        MlflowClient.log_batch = dies
    tracker = tracked(run, uri, begin)
    for step in range(begin + 1, end + 1):
        tracker.log(step, point(step))
        time.sleep(0.002)
    tracker.end("FINISHED")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "file"])
def test_a_process_killed_at_any_time_loses_and_doubles_nothing(
    kind: str, run: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file store keeps whatever it is sent, twice if it is sent twice; so this does not rest on SQL's keys.

    There the process ends between two calls: a line that it has half written makes MLflow's store unreadable for good.
    """
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"sqlite:///{store}" if kind == "sqlite" else (tmp_path / "mlruns").as_uri()
    begin = 0
    for kills in range(8):
        calls = kills + 2 if kind == "file" else 0  # the first one is of parameters
        process = FORKED.Process(target=_train, args=(run, uri, begin, 100_000, calls))
        before = sent(run)
        start(process)
        if not calls:
            # Between two calls or in the middle of one; once before anything was sent.
            until(lambda before=before, kills=kills: sent(run) > before + 3000 if kills else (run / SPOOL).is_file())
            time.sleep(0.003 * kills)
            os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        process.join()
        recorded = [entry.content["step"] for entry in read_spool(run / SPOOL) if entry.kind == "metrics"]
        begin = max(0, (recorded[-1] if recorded else 0) - 5)  # its last checkpoint
    last = begin + 20
    process = FORKED.Process(target=_train, args=(run, uri, begin, last))
    start(process)
    process.join()
    assert process.exitcode == 0
    sync(run, uri)  # what a slow machine has not sent by the end of the run
    found = check_arrived_once(uri, run, list(range(1, last + 1)))
    assert found.info.status == "FINISHED"


@pytest.mark.parametrize(
    ("address", "seen"),
    [("http://me:geheim@{}", "http://...@{}"), ("http://{}/?access=geheim", "http://{}/?access=...")],
)
def test_passwords_and_tokens_are_nowhere(address: str, seen: str, run: Path, told: Told) -> None:
    place = f"127.0.0.1:{free_port()}"
    tracker = tracked(run, address.format(place), **{"dataset.place": "s3://key:geheim@bucket/wiki"})
    tracker.log(1, point(1))
    until(lambda: told.says("training goes on"))
    tracker.end("KILLED")
    assert told.says(f"entries wait for MLflow ({seen.format(place)} does not answer)")
    assert told.says(f"`trelm sync {run}`")
    with pytest.raises(UserError, match=rf"^{re.escape(seen.format(place))}: passwords and tokens are not kept"):
        sync(run)
    for file in run.iterdir():
        assert "geheim" not in file.read_text(), file
    assert "geheim" not in told.text


def _log_one_point(uri: str, run: Path) -> None:
    run.mkdir()
    tracker = tracked(run, uri)
    tracker.log(1, point(1))
    tracker.end("FINISHED")


@pytest.mark.slow
def test_runs_that_start_together_make_one_store(tmp_path: Path) -> None:
    """As those of a sweep do; MLflow itself has the tables of a new sqlite file made by whoever opens it."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    runs = [FORKED.Process(target=_log_one_point, args=(uri, tmp_path / f"run{number}")) for number in range(3)]
    for process in runs:
        start(process)
    for process in runs:
        process.join()
    assert [process.exitcode for process in runs] == [0, 0, 0]
    assert {run.info.run_name for run in runs_of(uri)} == {"run0", "run1", "run2"}


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("http://", "not the address of a server"),
        ("http://me:geheim@:5000", "not the address of a server"),
        ("http://me:geheim@host:port", "Port could not be cast"),
        ("nosuch://me:geheim@host", ""),
        ("postgresql+nosuch://me:geheim@host/db", "nosuch"),
        ("sqlite:////proc/nowhere/mlflow.db", "No such file"),
        ("sqlite:///{here}", "Is a directory"),
        ("sqlite:///{here}/text", "file is not a database"),
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite://here/mlflow.db", "Invalid SQLite URL"),
        ("mlruns", "maintenance mode"),
    ],
)
def test_an_address_that_cannot_work_is_refused_at_the_start(uri: str, reason: str, run: Path) -> None:
    (run / "text").write_text("not a database, " * 100)
    with pytest.raises(UserError, match=r"^tracking\.uri: cannot use ") as raised:
        tracked(run, uri.format(here=run))
    assert reason in str(raised.value)
    assert "geheim" not in str(raised.value)
    assert not list(read_spool(run / SPOOL))


@pytest.fixture
def finished(run: Path, store: Path) -> str:
    """The address of a store that has ten points of a finished run."""
    uri = f"sqlite:///{store}"
    tracker = tracked(run, uri)
    for step in range(1, 11):
        tracker.log(step, point(step))
    tracker.end("FINISHED")
    check_arrived_once(uri, run, list(range(1, 11)))
    return uri


@pytest.mark.slow
def test_a_continuation_is_the_same_mlflow_run(run: Path, finished: str) -> None:
    (first,) = runs_of(finished)
    assert json.loads((run / PROGRESS).read_text())["run_id"] == first.info.run_id
    tracker = tracked(run, finished, step=8, world_size=4)
    until(lambda: runs_of(finished)[0].info.status == "RUNNING")
    for step in range(9, 13):
        tracker.log(step, point(step))
    tracker.end("KILLED")
    again = check_arrived_once(finished, run, list(range(1, 13)))
    assert (again.info.run_id, again.info.status) == (first.info.run_id, "KILLED")
    assert again.data.tags["continued.world_size"] == "4"


@pytest.mark.slow
def test_a_run_folder_without_its_spool_is_the_same_mlflow_run(run: Path, finished: str) -> None:
    from mlflow import MlflowClient

    (first,) = runs_of(finished)
    key = next(read_spool(run / SPOOL)).content["key"]
    for name in (SPOOL, PROGRESS):
        (run / name).unlink()
    tracker = tracked(run, finished, step=8, key=key)  # of a checkpoint at step 8
    for step in range(9, 13):
        tracker.log(step, point(step))
    tracker.end("FINISHED")
    (again,) = runs_of(finished)
    assert again.info.run_id == first.info.run_id
    history = MlflowClient(finished).get_metric_history(again.info.run_id, "loss")
    assert [metric.step for metric in history] == list(range(1, 13))


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["progress", "run", "store"])
def test_what_mlflow_or_we_forgot_is_sent_again(
    lost: str, run: Path, finished: str, empty_store: Path, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    uri = finished
    if lost == "progress":
        (run / PROGRESS).write_text('{"run_id": ')
        with pytest.raises(UserError, match="does not say where to; give --uri"):
            sync(run)
    elif lost == "run":
        MlflowClient(uri).delete_run(runs_of(uri)[0].info.run_id)
    else:
        uri = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'other.db')}"
    number, address = sync(run, uri)
    assert address == uri
    assert number == len(list(read_spool(run / SPOOL)))
    assert check_arrived_once(uri, run, list(range(1, 11))).info.status == "FINISHED"
    assert sync(run, uri)[0] == 0


@pytest.mark.slow
def test_what_mlflow_refuses_does_not_hold_up_the_rest(
    run: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{store}"
    MlflowClient(uri).create_experiment("trelm", artifact_location="file:///proc/nowhere")
    (run / "config.yaml").write_text("a: 1\n")
    tracker = tracked(run, uri)
    tracker.log_file("config.yaml")
    tracker.log_file("missing.png")
    tracker.log(1, point(1))
    tracker.log(2, {"a name, with a bell \a": 1.0})
    tracker.log(3, point(3))
    tracker.end("FINISHED")
    (found,) = runs_of(uri)
    assert [item.step for item in MlflowClient(uri).get_metric_history(found.info.run_id, "loss")] == [1, 3]
    told = capsys.readouterr().err
    assert "config.yaml is left out" in told
    assert "refuses an entry of kind metrics" in told
    assert found.info.status == "FINISHED"


def test_files_of_a_folder_lie_in_it_there_too_and_once(run: Path, store: Path) -> None:
    """A restart logs them again, with what they hold by then."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{store}"
    (run / "profile").mkdir()
    for content in ("before", "after"):
        (run / "profile" / "rank-0.json.gz").write_text(content)
        tracker = tracked(run, uri)
        tracker.log_file("profile/rank-0.json.gz")
        tracker.end("FINISHED")
    (found,) = runs_of(uri)
    client = MlflowClient(uri)
    assert [item.path for item in client.list_artifacts(found.info.run_id)] == ["profile"]
    (item,) = client.list_artifacts(found.info.run_id, "profile")
    assert (item.path, item.file_size) == ("profile/rank-0.json.gz", len("after"))


def test_nobody_sends_while_the_run_is_training(run: Path) -> None:
    from trelm_ds.files import lock

    with pytest.raises(UserError, match=f"holds no {SPOOL}"):
        sync(run)
    Spool(run).begin(0, "trelm", "run", {}, {})
    with lock(run / ".lock", "run"), pytest.raises(UserError, match="in use by another process"):
        sync(run)


def test_a_run_says_where_it_comes_from() -> None:
    import subprocess

    tags = source_tags("pretrain", ["node-a", "node-b"])
    head = subprocess.run(
        ["git", "-C", str(Path(uploader.__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    if head.returncode:
        assert "mlflow.source.git.commit" not in tags
    else:
        assert tags["mlflow.source.git.commit"] == head.stdout.strip()
    assert (tags["system.node-0"], tags["system.node-1"]) == ("node-a", "node-b")


def test_a_part_of_a_run_stands_below_it(tmp_path: Path) -> None:
    """Also where it is sent first."""
    from mlflow import MlflowClient

    uri, whole, part = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "whole", tmp_path / "part"
    for folder in (whole, part):
        folder.mkdir()
    parent = MlflowRun(whole, uri, "tasks", "whole", {}, {})
    child = MlflowRun(part, uri, "tasks", "part", {"seed": 1}, {}, parent=parent.key)
    child.log(1, {"f1": 0.5})
    child.end("FINISHED")
    parent.end("FINISHED")
    by_name = {found.info.run_name: found for found in runs_of(uri, "tasks")}
    assert by_name["part"].data.tags["mlflow.parentRunId"] == by_name["whole"].info.run_id
    assert MlflowClient(uri).get_metric_history(by_name["part"].info.run_id, "f1")[0].value == 0.5
