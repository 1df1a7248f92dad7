"""Send the spool to MLflow: every entry, in order, exactly once. The only module that talks to MLflow."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trelm_ds import log
from trelm_ds.errors import UserError
from trelm_ds.files import waiting_lock, write_atomically
from trelm_ds.redact import scrub, shown
from trelm_ds.run_folder import PROGRESS, SPOOL
from trelm_ds.tracking.spool import SpoolEntry, read_spool

_KEY = "trelm.run_key"
_METRICS_PER_CALL = 1000  # MLflow's limit
_FILE_ATTEMPTS = 3


@dataclass
class Progress:
    """How much of the spool MLflow has, as stored in the run folder.

    Attributes:
        store: tracking URI that the run is sent to, without password.
        experiment, key, run_id: identify the current MLflow run; None before the first.
        begin: byte offset in the spool at which that run's entries begin.
        sent: number of bytes of the spool that MLflow has.
    """

    store: str | None = None
    experiment: str | None = None
    key: str | None = None
    run_id: str | None = None
    begin: int = 0
    sent: int = 0

    @classmethod
    def of(cls, run: Path) -> Progress:
        """Read the progress stored in a run folder; start over if it is missing, damaged or about another spool.

        Sending again what MLflow already has does no harm.
        """
        try:
            found = cls(**json.loads((run / PROGRESS).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls()
        first = next(read_spool(run / SPOOL, found.begin), None)
        known = first is not None and first.content.get("key") == found.key
        known = known and found.begin <= found.sent <= (run / SPOOL).stat().st_size
        return found if known else cls(store=found.store)

    def write(self, run: Path) -> None:
        """Store the progress in a run folder."""
        write_atomically(run / PROGRESS, json.dumps(asdict(self)) + "\n")


class Sender:
    """Sends a run's spool to one MLflow store.

    A call may have taken effect although it failed here, or this process may have been killed before it stored the
    progress. So every call is made safe to repeat, and each entry takes effect exactly once:

    - An MLflow run carries our key as a tag and is searched for before it is created.
    - Steps only grow and are sent in order, so the newest step of each metric in MLflow tells what has arrived. It is
      queried at the start and after every failure, and points up to it are not sent again.
    - A call that timed out here may still take effect after it has been repeated. MLflow's SQL stores (3.17, alone and
      behind a server) have (run, key, timestamp, step, value) as primary key and ignore equal rows. Only its file
      store, which MLflow itself refuses by default, would keep both.
    - Parameters, tags, status and files may be written twice.

    Args:
        run: the run folder.
        address: the tracking URI.

    Attributes:
        sent: number of entries sent by this object.
        stop: set it from another thread to make `send_waiting` return after the current call.

    Raises:
        UserError: the address cannot work, whether or not a server is up.
    """

    def __init__(self, run: Path, address: str) -> None:
        self._run, self._address = run, address
        self._progress = Progress.of(run)
        self._client: Any = None
        self._arrived: dict[str, int] | None = None  # newest step of each metric in MLflow; None: to be queried
        self._file_failures = 0
        self.sent = 0
        self.stop = threading.Event()
        _quieten()
        try:
            self._open_if_local()
        except Exception as error:  # whatever the store raises
            raise UserError(f"tracking.uri: cannot use {shown(address)}: {self.reason(error)}") from None
        if self._progress.store != shown(address):
            self._progress.store = shown(address)  # `trelm sync` reads it
            self._progress.write(run)

    def waiting(self) -> int:
        """Count the entries that MLflow does not have."""
        return sum(1 for _ in read_spool(self._run / SPOOL, self._progress.sent))

    def reason(self, error: Exception) -> str:
        """Return an exception's first line, without passwords."""
        line = (str(error).splitlines() or [""])[0] or type(error).__name__
        if "Max retries exceeded" in line:  # requests: no connection, or no answer
            line = f"{self._address} does not answer"
        return scrub(line, self._address)[:300]

    def _open_if_local(self) -> None:
        """Open a store that needs no network; for any other, only check the address."""
        from mlflow.store.db.db_types import DATABASE_ENGINES

        scheme = urlsplit(self._address).scheme
        if scheme in ("http", "https"):
            parts = urlsplit(self._address)
            if not parts.hostname or parts.port == 0:  # reading the port checks it
                raise ValueError("not the address of a server")
        elif scheme.split("+")[0] in DATABASE_ENGINES and not scheme.startswith("sqlite"):
            from sqlalchemy import create_engine

            create_engine(self._address)  # loads the driver, connects to nothing
        else:
            if scheme.startswith("sqlite"):
                _check_sqlite(self._address)
            try:
                self._client = _client(self._address)
            except Exception as error:
                if "database is locked" not in str(error):  # another run is writing; `send_waiting` tries again
                    raise

    def send_waiting(self) -> None:
        """Send all waiting entries, in order, storing the progress after each call.

        Raises:
            Exception: whatever MLflow's client raises when the store does not answer; call again later to continue.
        """
        try:
            if self._client is None:
                self._client = _client(self._address)
            if self._arrived is None:
                self._attach()
            while not self.stop.is_set() and (batch := self._next_batch()):
                self._send(batch)
        except Exception:
            self._arrived = None
            raise

    def _attach(self) -> None:
        """Query which points have arrived; where MLflow lacks the run, go back to the run's first entry."""
        from mlflow.exceptions import MlflowException

        progress = self._progress
        self._arrived = {}
        if progress.run_id is None:
            return
        try:
            found = self._client.get_run(progress.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            found = None
        if found is None or found.info.lifecycle_stage == "deleted":
            self._progress = Progress(progress.store, begin=progress.begin, sent=progress.begin)
        else:
            self._arrived = _newest_steps(found)

    def _next_batch(self) -> list[SpoolEntry]:
        """Return the next entry, or as many log points as fit into one call."""
        batch: list[SpoolEntry] = []
        size = 0
        for entry in read_spool(self._run / SPOOL, self._progress.sent):
            size += len(entry.content.get("metrics", ()))
            if batch and (entry.kind != "metrics" or size > _METRICS_PER_CALL):
                break
            batch.append(entry)
            if entry.kind != "metrics":
                break
        return batch

    def _send(self, batch: list[SpoolEntry]) -> None:
        """Send entries of one kind and store the progress; skip, with a warning, what the store refuses for good."""
        # The spool must be on disk first: after a power cut it may not hold less than MLflow has.
        descriptor = os.open(self._run / SPOOL, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        kind = batch[0].kind
        try:
            if kind == "run":
                self._start_run(batch[0])
            elif self._progress.run_id is None:
                pass  # the line that begins its run is damaged
            elif kind == "metrics":
                self._send_metrics(batch)
            elif kind == "file":
                self._send_file(batch[0].content["name"])
            elif kind == "tags":
                self._set_tags(batch[0].content["tags"])
            else:
                self._set_status(batch[0].content)
        except Exception as error:
            if kind == "run" or not _refused(error):
                raise
            before = self._progress
            self._attach()
            if self._progress is not before:
                raise  # the run was deleted in MLflow: send it from its beginning
            if len(batch) > 1:  # one of them is refused; find out which
                for entry in batch:
                    self._send([entry])
                return
            log.warning(f"MLflow refuses an entry of kind {kind}, which is left out: {self.reason(error)}")
        self._progress.sent = batch[-1].end
        self._progress.write(self._run)
        self.sent += len(batch)

    def _start_run(self, entry: SpoolEntry) -> None:
        """Find the MLflow run with the entry's key, or create it, and continue with it from this entry on."""
        from mlflow.entities import Param, RunTag, ViewType

        content, client = entry.content, self._client
        experiment_id = self._experiment(content["experiment"])
        wanted = f"tags.`{_KEY}` = '{content['key']}'"

        def found() -> list[str]:
            runs = client.search_runs([experiment_id], wanted, ViewType.ACTIVE_ONLY)
            return sorted(run.info.run_id for run in runs)

        if not (runs := found()):
            tags = {_KEY: content["key"]} | content["tags"]
            created = client.create_run(experiment_id, content["time"], tags, content["name"])
            runs = found() or [created.info.run_id]
        run_id, *twins = runs
        for twin in twins:  # empty, left by a creation that timed out here but took effect later
            client.delete_run(twin)
        params = [Param(key, value) for key, value in content["params"].items()]
        client.log_batch(run_id, params=params, tags=[RunTag(key, value) for key, value in content["tags"].items()])
        self._arrived = _newest_steps(client.get_run(run_id))
        store = self._progress.store
        self._progress = Progress(store, content["experiment"], content["key"], run_id, entry.start, entry.start)

    def _experiment(self, name: str) -> str:
        """Return the id of an experiment, creating it where there is none."""
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            local = self._address.startswith("sqlite:")
            location = (self._run.resolve().parent / "mlartifacts").as_uri() if local else None
            with contextlib.suppress(MlflowException):  # another run may create it at the same time
                return str(self._client.create_experiment(name, artifact_location=location))
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise ConnectionError(f"the experiment {name} cannot be created")
        return str(found.experiment_id)

    def _send_metrics(self, batch: list[SpoolEntry]) -> None:
        """Send log points in one call, leaving out the values that have arrived."""
        from mlflow.entities import Metric

        assert self._arrived is not None
        metrics = []
        for content in (entry.content for entry in batch):
            for name, value in content["metrics"].items():
                if content["step"] > self._arrived.get(name, -1):
                    metrics.append(Metric(name, value, content["time"], content["step"]))
        if metrics:
            self._client.log_batch(self._progress.run_id, metrics=metrics)

    def _set_tags(self, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(self._progress.run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    def _set_status(self, content: dict[str, Any]) -> None:
        if content["status"] == "RUNNING":
            self._client.update_run(self._progress.run_id, status="RUNNING")
        else:
            self._client.set_terminated(self._progress.run_id, content["status"], content["time"])

    def _send_file(self, name: str) -> None:
        """Upload a file of the run folder.

        A file that cannot be stored although the server answers is skipped after a few attempts, so that it does not
        hold up the metrics behind it.
        """
        path = self._run / name
        if not path.is_file():
            return
        try:
            self._client.log_artifact(self._progress.run_id, str(path))
        except Exception as error:
            self._client.get_run(self._progress.run_id)  # raises if the server does not answer at all
            self._file_failures += 1
            if self._file_failures < _FILE_ATTEMPTS:
                raise
            log.warning(f"MLflow: {name} is left out, it stays in the run folder: {self.reason(error)}")
        self._file_failures = 0


def _check_sqlite(address: str) -> None:
    """Raise at once if a sqlite file cannot be used; MLflow would retry for a minute."""
    import sqlite3

    if path := _sqlite_file(address):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA schema_version")


def _sqlite_file(address: str) -> Path | None:
    from sqlalchemy import make_url

    name = make_url(address).database if urlsplit(address).scheme.startswith("sqlite") else None
    return Path(name) if name and name != ":memory:" else None


def _client(address: str) -> Any:
    """Open an MLflow client, one process at a time: it creates a new sqlite file's tables, and two would collide."""
    from mlflow import MlflowClient

    path = _sqlite_file(address)
    if path is None:
        return MlflowClient(address)
    with waiting_lock(path.with_name(f".{path.name}.lock")):
        return MlflowClient(address)


def _newest_steps(run: Any) -> dict[str, int]:
    """Return the last step of each metric of an MLflow run."""
    return {metric.key: metric.step for metric in run.data.to_proto().metrics}


def _refused(error: Exception) -> bool:
    """Return whether the store rejects a request for good, rather than for now or for want of credentials."""
    from mlflow.exceptions import MlflowException

    if not isinstance(error, MlflowException):
        return False
    status = error.get_http_status_code()
    return 400 <= status < 500 and status not in (401, 403, 408, 429)


def _quieten() -> None:
    """Silence MLflow's own logs and retries: failures are reported, and requests repeated, by this module."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    for name, level in (("alembic", logging.WARNING), ("mlflow", logging.ERROR), ("urllib3", logging.ERROR)):
        logging.getLogger(name).setLevel(level)
