"""Brings the spool to MLflow: every entry, in order, once. The only module that talks to MLflow."""

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
from trelm_ds.tracking.spool import Entry, read

_KEY = "trelm.run_key"
_METRICS_PER_CALL = 1000  # MLflow's limit
_FILE_ATTEMPTS = 3


@dataclass
class Progress:
    """How much of the spool MLflow has.

    Attributes:
        store: address, without password, that the run is sent to.
        experiment, key, run_id: of the MLflow run that entries go to; None before the first.
        begin: byte of the spool where that run's entries begin.
        sent: bytes of the spool that MLflow has.
    """

    store: str | None = None
    experiment: str | None = None
    key: str | None = None
    run_id: str | None = None
    begin: int = 0
    sent: int = 0

    @classmethod
    def of(cls, run: Path) -> Progress:
        """What is noted in a run folder; nothing sent where that is missing, damaged or about another spool.

        Sending again what MLflow has does no harm, so in doubt everything is sent.
        """
        try:
            found = cls(**json.loads((run / PROGRESS).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls()
        first = next(read(run / SPOOL, found.begin), None)
        known = first is not None and first.content.get("key") == found.key
        known = known and found.begin <= found.sent <= (run / SPOOL).stat().st_size
        return found if known else cls(store=found.store)

    def write(self, run: Path) -> None:
        write_atomically(run / PROGRESS, json.dumps(asdict(self)) + "\n")


class Sender:
    """Sends a run's spool.

    Exactly once: a call may have been carried out although it failed here, or this process was killed before it
    noted the answer. So whatever may have happened twice is made harmless:

    - An MLflow run carries our key as a tag and is looked for before it is created.
    - Steps only grow and are sent in order, so of each metric MLflow's newest step says what has arrived. It is
      asked after every failure and at the start, and what has arrived is left out.
    - A call that timed out here and is carried out later meets its own repetition: MLflow's SQL stores (3.17, alone
      and behind a server) have (run, key, timestamp, step, value) as primary key and pass over equal rows. Only its
      file store, which MLflow itself refuses by default, would keep both.
    - Parameters, tags, status and files may be written again.

    Args:
        run: the run folder.
        address: tracking URI.

    Raises:
        UserError: the address cannot work, whether or not a server is up.
    """

    def __init__(self, run: Path, address: str) -> None:
        self._run, self._address = run, address
        self._progress = Progress.of(run)
        self._client: Any = None
        self._arrived: dict[str, int] | None = None  # newest step of each metric; None: has to be asked
        self._file_failures = 0
        self.sent = 0  # entries, by this object
        self.stop = threading.Event()
        _quieten()
        try:
            self._open_if_local()
        except Exception as error:  # whatever the store raises
            raise UserError(f"tracking.uri: cannot use {shown(address)}: {self.reason(error)}") from None
        if self._progress.store != shown(address):
            self._progress.store = shown(address)  # `trelm sync` has to know where to
            self._progress.write(run)

    def waiting(self) -> int:
        """Entries that MLflow does not have."""
        return sum(1 for _ in read(self._run / SPOOL, self._progress.sent))

    def reason(self, error: Exception) -> str:
        """An exception's first line, without passwords."""
        line = (str(error).splitlines() or [""])[0] or type(error).__name__
        if "Max retries exceeded" in line:  # how requests says that there is no connection or no answer
            line = f"{self._address} does not answer"
        return scrub(line, self._address)[:300]

    def _open_if_local(self) -> None:
        """Opens a store that needs no network; of the others only the address is checked."""
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
                _check_sqlite(self._address)  # MLflow would try for a minute
            try:
                self._client = _client(self._address)
            except Exception as error:
                if "database is locked" not in str(error):  # by another run's writing, for now
                    raise

    def send_waiting(self) -> None:
        """Sends what waits, in order, and notes each success.

        Raises:
            Exception: whatever MLflow's client raises when the store does not answer; nothing is lost by it.
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
        """Finds out what has arrived. A run that the store does not have is sent to it from its beginning."""
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

    def _next_batch(self) -> list[Entry]:
        """The next entry, or log points that go into one call."""
        batch: list[Entry] = []
        size = 0
        for entry in read(self._run / SPOOL, self._progress.sent):
            size += len(entry.content.get("metrics", ()))
            if batch and (entry.kind != "metrics" or size > _METRICS_PER_CALL):
                break
            batch.append(entry)
            if entry.kind != "metrics":
                break
        return batch

    def _send(self, batch: list[Entry]) -> None:
        """Sends entries of one kind and notes it. What the store refuses for good is reported and left out."""
        # Not before it is on disk: after a power cut the log must not be shorter than what MLflow has.
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
                pass  # its run's line was lost
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
                raise  # the run was deleted there: begin again
            if len(batch) > 1:
                for entry in batch:
                    self._send([entry])
                return
            log.warning(f"MLflow refuses an entry of kind {kind}, which is left out: {self.reason(error)}")
        self._progress.sent = batch[-1].end
        self._progress.write(self._run)
        self.sent += len(batch)

    def _start_run(self, entry: Entry) -> None:
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
        for twin in twins:  # empty ones, of a creation that timed out here and was carried out after all
            client.delete_run(twin)
        params = [Param(key, value) for key, value in content["params"].items()]
        client.log_batch(run_id, params=params, tags=[RunTag(key, value) for key, value in content["tags"].items()])
        self._arrived = _newest_steps(client.get_run(run_id))
        store = self._progress.store
        self._progress = Progress(store, content["experiment"], content["key"], run_id, entry.start, entry.start)

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            local = self._address.startswith("sqlite:")
            location = (self._run.resolve().parent / "mlartifacts").as_uri() if local else None
            with contextlib.suppress(MlflowException):  # another run has created it just now
                return str(self._client.create_experiment(name, artifact_location=location))
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise ConnectionError(f"the experiment {name} cannot be created")
        return str(found.experiment_id)

    def _send_metrics(self, batch: list[Entry]) -> None:
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
        """A file that cannot be stored while the server answers does not hold up the metrics for ever."""
        path = self._run / name
        if not path.is_file():
            return
        try:
            self._client.log_artifact(self._progress.run_id, str(path))
        except Exception as error:
            self._client.get_run(self._progress.run_id)  # raises where the whole server is away
            self._file_failures += 1
            if self._file_failures < _FILE_ATTEMPTS:
                raise
            log.warning(f"MLflow: {name} is left out, it stays in the run folder: {self.reason(error)}")
        self._file_failures = 0


def _check_sqlite(address: str) -> None:
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
    """MLflow's client. It makes the tables of a new sqlite file, which two runs at a time would only spoil."""
    from mlflow import MlflowClient

    path = _sqlite_file(address)
    if path is None:
        return MlflowClient(address)
    with waiting_lock(path.with_name(f".{path.name}.lock")):
        return MlflowClient(address)


def _newest_steps(run: Any) -> dict[str, int]:
    """The last step of every metric of an MLflow run."""
    return {metric.key: metric.step for metric in run.data.to_proto().metrics}


def _refused(error: Exception) -> bool:
    """Whether the store will never take this, as told from one that cannot answer now or asks who we are."""
    from mlflow.exceptions import MlflowException

    if not isinstance(error, MlflowException):
        return False
    status = error.get_http_status_code()
    return 400 <= status < 500 and status not in (401, 403, 408, 429)


def _quieten() -> None:
    """Failures are reported here, in one line; and a request is repeated here, not within MLflow's client."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    for name, level in (("alembic", logging.WARNING), ("mlflow", logging.ERROR), ("urllib3", logging.ERROR)):
        logging.getLogger(name).setLevel(level)
