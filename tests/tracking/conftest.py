"""A run folder, and MLflow stores with their tables."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Once
from tests.tracking.mlflow_server import MlflowServer
from tests.tracking.runs import Told
from trelm_ds.tracking import mlflow_run
from trelm_ds.tracking import store as store_module


@pytest.fixture(scope="session")
def empty_store(once: Once) -> Path:
    """MLflow's tables; making them takes it ten seconds."""
    from mlflow import MlflowClient

    def make(folder: Path) -> None:
        MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        with sqlite3.connect(folder / "mlflow.db") as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    return once("empty_store", make) / "mlflow.db"


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(empty_store, tmp_path / "mlflow.db"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def server(store: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(store)
    yield server
    server.kill()


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Told:
    """What is logged, by a program that does not wait long."""
    monkeypatch.setattr(store_module, "_LOCK_WAIT_S", 0.1)
    monkeypatch.setattr(store_module, "_BUSY_S", 0.1)
    monkeypatch.setattr(mlflow_run, "_WAIT_STOPPED_S", 0.1)
    return Told(capsys)
