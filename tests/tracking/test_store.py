"""Stores that cannot be used when a run starts: training goes on, one line says why, and later everything arrives."""

from __future__ import annotations

import contextlib
import fcntl
import resource
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forked import FORKED, start
from tests.tracking.runs import Told, check_arrived_once, point, sent, tracked, until
from trelm_ds import log
from trelm_ds.tracking import mlflow_run, sync
from trelm_ds.tracking import store as store_module


@contextlib.contextmanager
def held_lock_file(path: Path) -> Iterator[None]:
    with path.with_name(f".{path.name}.lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def test_a_store_that_another_process_locks_is_like_a_server_that_is_down(run: Path, store: Path, told: Told) -> None:
    with contextlib.closing(sqlite3.connect(store)) as database:
        database.execute("BEGIN EXCLUSIVE")
        tracker = tracked(run, f"sqlite:///{store}")
        tracker.log(1, point(1))
        until(lambda: told.says("training goes on"))
        assert sent(run) == 0
    tracker.log(2, point(2))
    tracker.end("FINISHED")
    check_arrived_once(f"sqlite:///{store}", run, [1, 2])
    assert told.says(f"warning: MLflow: sqlite:///{store}: database is locked; training goes on")
    assert told.says("MLflow is back")
    assert told.text.count("\n") == 2


def test_so_is_one_that_a_hanging_process_was_to_make(run: Path, empty_store: Path, tmp_path: Path, told: Told) -> None:
    database = tmp_path / "mlflow.db"
    with held_lock_file(database):
        tracker = tracked(run, f"sqlite:///{database}")
        tracker.log(1, point(1))
        until(lambda: told.says("training goes on"))
        assert told.says(f"{database}: another process has held {tmp_path / '.mlflow.db.lock'} for ")
        shutil.copy(empty_store, database)  # once it is made, nobody asks for the lock
        tracker.end("FINISHED")
    check_arrived_once(f"sqlite:///{database}", run, [1])


def test_a_store_that_cannot_be_written_is_told_in_a_line_and_sync_takes_another(
    run: Path, store: Path, told: Told
) -> None:
    read_only = f"sqlite:///file:{store}?mode=ro&uri=true"
    tracker = tracked(run, read_only)
    tracker.log(1, point(1))
    until(lambda: told.says("training goes on"))
    tracker.end("KILLED")
    assert told.says("attempt to write a readonly database; training goes on")
    assert told.text.count("\n") == 2
    sync(run, f"sqlite:///{store}")
    check_arrived_once(f"sqlite:///{store}", run, [1])


def _log_with_a_full_disk(run: Path, uri: str, output: Path) -> None:
    """A real full disk is a file size limit here: 200 KB, less than MLflow's tables."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    with output.open("w") as stream, contextlib.redirect_stderr(stream):
        log.setup()
        mlflow_run._WAIT_STOPPED_S = 1
        tracker = tracked(run, uri)
        tracker.log(1, point(1))
        until(lambda: "training goes on" in output.read_text())
        tracker.end("KILLED")


@pytest.mark.slow
@pytest.mark.parametrize("begun", [False, True])
def test_a_full_disk_is_told_in_a_line(begun: bool, run: Path, empty_store: Path, tmp_path: Path) -> None:
    database, output = tmp_path / "mlflow.db", tmp_path / "output"
    if begun:
        shutil.copy(empty_store, database)
    process = FORKED.Process(target=_log_with_a_full_disk, args=(run, f"sqlite:///{database}", output))
    start(process)
    process.join()
    assert process.exitcode == 0
    first, second = output.read_text().splitlines()
    assert first.startswith(f"warning: MLflow: sqlite:///{database}: ")
    assert first.endswith("training goes on and mlflow_spool.jsonl keeps what MLflow has to hear")
    assert second.startswith("warning: 3 entries wait for MLflow")
    shutil.copy(empty_store, tmp_path / "another.db")
    sync(run, f"sqlite:///{tmp_path / 'another.db'}")
    check_arrived_once(f"sqlite:///{tmp_path / 'another.db'}", run, [1])


def test_a_half_made_store_is_told_in_a_line(run: Path, tmp_path: Path, told: Told) -> None:
    database = tmp_path / "mlflow.db"
    with sqlite3.connect(database) as made:
        made.execute("CREATE TABLE experiments (experiment_id INTEGER)")
    tracker = tracked(run, f"sqlite:///{database}")
    until(lambda: told.says("training goes on"))
    tracker.end("KILLED")
    assert told.says(f"{database} is half made, ")
    assert told.says("move it away, and the next start or `trelm sync` makes another")
    assert told.text.count("\n") == 2


def _open(address: str, drafts: Path) -> None:
    tempfile.tempdir = str(drafts)
    store_module.check_address(address)
    store_module.open_client(address)


@pytest.mark.slow
def test_a_store_whose_maker_was_killed_is_made_by_the_next(tmp_path: Path, run: Path) -> None:
    """MLflow itself never opens a database again in which it was killed after the 20th of its tables."""
    drafts = tmp_path / "drafts"
    drafts.mkdir()
    address = f"sqlite:///{tmp_path / 'mlflow.db'}"

    def tables() -> int:
        counts = [0]
        for path in drafts.glob("*/mlflow.db"):
            with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path)) as database:
                counts.append(database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
        return max(counts)

    process = FORKED.Process(target=_open, args=(address, drafts))
    start(process)
    until(lambda: tables() > 25 or process.exitcode is not None)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    tracker = tracked(run, address)
    tracker.log(1, point(1))
    tracker.end("FINISHED")
    check_arrived_once(address, run, [1])


def test_the_reason_is_the_line_that_says_something() -> None:
    how = "(raised as a result of Query-invoked autoflush; consider using ...)"
    lines = f"{how}\n(sqlite3.OperationalError) attempt to write a readonly database\n[SQL: UPDATE x]"
    assert store_module.reason(RuntimeError(lines), "sqlite:////a/b.db") == "attempt to write a readonly database"
    assert store_module.reason(RuntimeError(""), "sqlite:////a/b.db") == "RuntimeError"
