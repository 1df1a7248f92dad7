"""Send the spool to MLflow: every entry, in order, exactly once."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trelm_ds import log
from trelm_ds.files import write_atomically
from trelm_ds.redact import shown
from trelm_ds.run_folder import PROGRESS, SPOOL
from trelm_ds.tracking.spool import CONTINUED, SpoolEntry, read_spool
from trelm_ds.tracking.store import open_client, reason

_KEY = "trelm.run_key"
PARENT = "trelm.parent_key"  # tag: the key of the run that this one is a part of
_METRICS_PER_CALL = 1000  # MLflow's limit
_FILE_ATTEMPTS = 3


@dataclass
class Progress:
    """How much of the spool MLflow has, as stored in the run folder.

    Attributes:
        store: tracking URI that the run is sent to, without password.
        experiment, key, run_id: identify the current MLflow run; None before the first. The experiment is the one that
            it was created in, which may be another than the spool names.
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
        address: the tracking URI, which `check_address` has let pass.
        experiment: where to create the run if MLflow does not have it; default: the experiment that the spool names.

    Attributes:
        sent: number of entries sent by this object.
        stop: set it from another thread to make `send_waiting` return after the current call.
    """

    def __init__(self, run: Path, address: str, experiment: str | None = None) -> None:
        self._run, self._address, self._wanted = run, address, experiment
        self._progress = Progress.of(run)
        self._client: Any = None
        self._arrived: dict[str, int] | None = None  # newest step of each metric in MLflow; None: to be queried
        self._file_failures, self._told = 0, False
        self.sent = 0
        self.stop = threading.Event()
        self._progress.store = shown(address)  # `trelm sync` reads it
        self._progress.write(run)  # also where it has started over: an old one may seem to fit a spool that grows anew

    def waiting(self) -> int:
        """Count the entries that MLflow does not have."""
        return sum(1 for _ in read_spool(self._run / SPOOL, self._progress.sent))

    def problem(self, error: Exception) -> str:
        """Say in one line, without passwords, which store has which problem."""
        line, store = reason(error, self._address), shown(self._address)
        return line if store in line else f"{store}: {line}"

    def send_waiting(self) -> None:
        """Send all waiting entries, in order, storing the progress after each call.

        Raises:
            Exception: whatever MLflow's client raises when the store does not answer; call again later to continue.
        """
        try:
            if self._client is None:
                self._client = open_client(self._address)
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
            self._tell_where()

    def _tell_where(self) -> None:
        """Say once that a run which MLflow has does not move to the experiment that is asked for."""
        if not self._told and self._wanted not in (None, self._progress.experiment):
            log.info(f"MLflow has this run in the experiment '{self._progress.experiment}', where it stays")
        self._told = True

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
            log.warning(f"MLflow refuses an entry of kind {kind}, which is left out: {reason(error, self._address)}")
        self._progress.sent = batch[-1].end
        self._progress.write(self._run)
        self.sent += len(batch)

    def _start_run(self, entry: SpoolEntry) -> None:
        """Find the MLflow run with the entry's key, or create it, and continue with it from this entry on."""
        content = entry.content
        run = self._find_run(content) or self._create_run(content)
        self._describe(run, content)
        self._arrived = _newest_steps(run)
        name = self._client.get_experiment(run.info.experiment_id).name
        store = self._progress.store
        self._progress = Progress(store, name, content["key"], run.info.run_id, entry.start, entry.start)
        self._tell_where()

    def _find_run(self, content: dict[str, Any]) -> Any:
        """Return the MLflow run with a key, None where there is none: in the experiment asked for or the spool's."""
        from mlflow.entities import ViewType

        experiments = map(self._client.get_experiment_by_name, {content["experiment"], self._name(content)})
        ids = [found.experiment_id for found in experiments if found and found.lifecycle_stage != "deleted"]
        wanted = f"tags.`{_KEY}` = '{content['key']}'"
        runs = list(self._client.search_runs(ids, wanted, ViewType.ACTIVE_ONLY)) if ids else []
        runs.sort(key=lambda run: (-max(_newest_steps(run).values(), default=-1), run.info.run_id))
        for twin in runs[1:]:
            if not twin.data.metrics:  # left by a creation that timed out here but took effect later
                self._client.delete_run(twin.info.run_id)
        return runs[0] if runs else None

    def _create_run(self, content: dict[str, Any]) -> Any:
        experiment_id = self._experiment(self._name(content))
        tags = {_KEY: content["key"]} | content["tags"] | self._parent(content)
        created = self._client.create_run(experiment_id, content["time"], tags, content["name"])
        return self._find_run(content) or created

    def _parent(self, content: dict[str, Any]) -> dict[str, str]:
        """Return MLflow's own tag for the run that this one is a part of."""
        if PARENT not in content["tags"]:
            return {}
        parent = self._find_run(content | {"key": content["tags"][PARENT]})
        if parent is None:  # this call is repeated until it is there
            raise RuntimeError("the run that this one is a part of has not arrived yet")
        return {"mlflow.parentRunId": parent.info.run_id}

    def _describe(self, run: Any, content: dict[str, Any]) -> None:
        """Give a run its parameters and tags; a parameter that it has otherwise, from a lost spool, becomes a tag."""
        from mlflow.entities import Param, RunTag

        known, params, tags = run.data.params, content["params"], dict(content["tags"])
        tags |= {f"{CONTINUED}{name}": value for name, value in params.items() if known.get(name, value) != value}
        new = [Param(name, value) for name, value in params.items() if name not in known]
        self._client.log_batch(run.info.run_id, params=new, tags=[RunTag(*tag) for tag in tags.items()])
        if run.info.status != "RUNNING":
            self._client.update_run(run.info.run_id, status="RUNNING")

    def _name(self, content: dict[str, Any]) -> str:
        return self._wanted or str(content["experiment"])

    def _experiment(self, name: str) -> str:
        """Return the id of an experiment, creating it where there is none."""
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            local = self._address.startswith("sqlite:")
            location = (self._run.resolve().parent / "mlartifacts").as_uri() if local else None
            try:
                return str(self._client.create_experiment(name, artifact_location=location))
            except MlflowException:
                found = self._client.get_experiment_by_name(name)
                if found is None:  # no other run has created it at the same time
                    raise
        if found.lifecycle_stage == "deleted":
            raise RuntimeError(
                f"the experiment '{name}' was deleted in MLflow; restore it there (`mlflow experiments restore -x "
                f"{found.experiment_id}`), or name another: --tracking.experiment NAME when the run continues, or "
                f"`trelm sync {self._run} --experiment NAME`"
            )
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
            folder = Path(name).parent.as_posix()  # there as here
            self._client.log_artifact(self._progress.run_id, str(path), None if folder == "." else folder)
        except Exception as error:
            self._client.get_run(self._progress.run_id)  # raises if the server does not answer at all
            self._file_failures += 1
            if self._file_failures < _FILE_ATTEMPTS:
                raise
            log.warning(f"MLflow: {name} is left out, it stays in the run folder: {reason(error, self._address)}")
        self._file_failures = 0


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
