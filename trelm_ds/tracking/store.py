"""An MLflow store: whether an address can ever work, how it is opened, what its errors say."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trelm_ds.errors import UserError
from trelm_ds.files import waiting_lock
from trelm_ds.redact import scrub, shown

_LOCK_WAIT_S = 20.0  # runs that start together wait for one of them to make the tables, which takes it ten seconds
_BUSY_S = 5.0
_MAY_PASS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENFILE, errno.EMFILE)
_HOW = "(raised as a result of Query-invoked autoflush"  # SQLAlchemy puts it before the line with the reason
_SQLITE = b"SQLite format 3\0"  # what a database begins with; an empty file is an empty database


def check_address(address: str) -> None:
    """Raise if no store can be at an address; one that is down, locked, full or read-only today is not an error.

    Nothing is waited for, and no tables are made.

    Raises:
        UserError: unknown scheme, no host, no file, a file that is no database ...
    """
    try:
        _check(address)
    except Exception as error:  # whatever the store raises
        raise UserError(f"tracking.uri: cannot use {shown(address)}: {reason(error, address)}") from None
    _quieten()


def _check(address: str) -> None:
    # Imported now: later it would be in a thread, while the program imports as well.
    from mlflow import MlflowClient
    from mlflow.store.db.db_types import DATABASE_ENGINES

    parts = urlsplit(address)
    if parts.scheme in ("http", "https"):
        if not parts.hostname or parts.port == 0:  # reading the port checks it
            raise ValueError("not the address of a server")
    elif parts.scheme.split("+")[0] in DATABASE_ENGINES:
        from sqlalchemy import create_engine

        create_engine(address)  # loads the driver, connects to nothing
        if parts.scheme.startswith("sqlite"):
            _check_sqlite(_sqlite_file(address))
    else:
        MlflowClient(address)


def _check_sqlite(path: Path | None) -> None:
    if path is None:
        raise ValueError("names no file, so nothing would be kept; write sqlite:////folder/mlflow.db")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.touch()
        with path.open("rb") as stream:
            begin = stream.read(len(_SQLITE))
    except OSError as error:
        if error.errno in _MAY_PASS:
            return
        raise
    if begin not in (b"", _SQLITE):
        raise ValueError("file is not a database")


def open_client(address: str) -> Any:
    """Open an MLflow client; may take a minute.

    Raises:
        Exception: whatever MLflow raises if the store cannot be used now.
    """
    from mlflow import MlflowClient

    path = _sqlite_file(address)
    if path is None:
        return MlflowClient(address)
    with contextlib.closing(sqlite3.connect(path, timeout=_BUSY_S)) as database:
        database.execute("BEGIN IMMEDIATE")  # asks whether it is locked or read-only; MLflow tries for minutes
        database.rollback()
        if _is_empty(database):
            with _one_maker(path):
                if _is_empty(database):
                    _make_tables(database)
    try:
        return MlflowClient(address)
    except Exception as error:
        if _has_experiment(path):
            raise
        why = f"{path} is half made, {reason(error, address)}; unless some process is making it now, move it away"
        raise RuntimeError(f"{why}, and the next start or `trelm sync` makes another") from None


@contextlib.contextmanager
def _one_maker(path: Path) -> Iterator[None]:
    """Let no other process make the tables of the same file: it would replace them, and what was sent meanwhile."""
    lock = path.with_name(f".{path.name}.lock")
    try:
        with waiting_lock(lock, _LOCK_WAIT_S):
            yield
    except TimeoutError:
        raise TimeoutError(f"another process has held {lock} for {_LOCK_WAIT_S:.0f} seconds") from None


def _is_empty(database: sqlite3.Connection) -> bool:
    return database.execute("SELECT 1 FROM sqlite_master").fetchone() is None


def _has_experiment(path: Path) -> bool:
    """Return whether MLflow has once made all tables of a database: last of all it adds its default experiment."""
    try:
        with contextlib.closing(sqlite3.connect(path)) as database:
            return database.execute("SELECT 1 FROM experiments").fetchone() is not None
    except sqlite3.Error as error:
        return "no such table" not in str(error)


def _make_tables(database: sqlite3.Connection) -> None:
    """Copy MLflow's tables in one transaction: MLflow never opens a database again that it has half made."""
    with contextlib.closing(sqlite3.connect(Path(_draft().name) / "mlflow.db")) as made:
        made.backup(database)


@functools.cache  # it takes ten seconds, and a disk that is full asks for it again and again
def _draft() -> tempfile.TemporaryDirectory[str]:
    """Let MLflow make its tables elsewhere; the folder lasts as long as this process."""
    from mlflow import MlflowClient

    folder = tempfile.TemporaryDirectory(prefix="trelm-mlflow-")
    MlflowClient(f"sqlite:///{folder.name}/mlflow.db")
    return folder


def _sqlite_file(address: str) -> Path | None:
    """Return the file of a sqlite address; None for another address, and for a database in memory."""
    if not urlsplit(address).scheme.startswith("sqlite"):
        return None
    from sqlalchemy import make_url

    name = (make_url(address).database or "").removeprefix("file:").partition("?")[0]
    return Path(name) if name not in ("", ":memory:") else None


def reason(error: Exception, address: str) -> str:
    """Return the first line of an exception that says something, without passwords."""
    lines = (line for line in str(error).splitlines() if not line.startswith(_HOW))
    line = next(lines, "") or type(error).__name__
    if "Max retries exceeded" in line:  # requests: no connection, or no answer
        line = f"{address} does not answer"
    line = re.sub(r"^\(\w+\.\w+\) ", "", line)  # SQLAlchemy: (sqlite3.OperationalError) ...
    return scrub(line, address)[:400]


def _quieten() -> None:
    """Silence MLflow's own logs and retries: failures are reported, and requests repeated, by this room.

    Called after the import of MLflow, which sets its levels. It logs an error of a database with 70 lines of stack.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    for name in ("alembic", "mlflow", "sqlalchemy", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
