"""The spool: an append-only file in the run folder with everything to be sent to MLflow, in order.

It is a log, not a queue: nothing is removed once it is sent. How much MLflow has is stored beside it, in
`mlflow_run.json`, so in case of doubt the whole run can be sent again. Each line is a JSON object with a "kind":

- run: an MLflow run begins. key (unique), experiment, name, time, params, tags
- tags: settings that a continuation has changed, or what a part of a run came to
- metrics: one log point. step, time, metrics. Steps only grow within a run
- file: a file of the run folder. name
- status: RUNNING, FINISHED, KILLED or FAILED. time. RUNNING has the run folder, by which a copy of it is recognised

Times are milliseconds since 1970 at which the event happened, not at which it was sent.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trelm_ds import log
from trelm_ds.files import append_line, write_atomically
from trelm_ds.run_folder import SPOOL

_KINDS = ("run", "tags", "metrics", "file", "status")
CONTINUED = "continued."


class SpoolEntry(NamedTuple):
    """One line of the spool.

    Attributes:
        content: the JSON object.
        start, end: byte offsets of the line in the file.
    """

    content: dict[str, Any]
    start: int
    end: int

    @property
    def kind(self) -> str:
        """One of run, tags, metrics, file and status."""
        return str(self.content["kind"])


@dataclass
class SpooledRun:
    """State of the newest run in a spool.

    Attributes:
        settings: its current parameters and tags, by name; None where no run has begun.
        step: step of its last log point; 0 before the first.
        status: its last status.
        key: its unique key, "" where no run has begun.
        folder: the run folder when a process last began; "" where an older version wrote the spool.
    """

    settings: dict[str, str] | None = None
    step: int = 0
    status: str = "RUNNING"
    key: str = ""
    folder: str = ""

    def update(self, content: dict[str, Any]) -> None:
        """Apply the next entry."""
        kind = content["kind"]
        self.folder = str(content.get("folder", self.folder))
        if kind == "run":
            self.settings, self.step, self.status = content["params"] | content["tags"], 0, "RUNNING"
            self.key = str(content["key"])
        elif kind == "tags" and self.settings is not None:
            self.settings |= {name.removeprefix(CONTINUED): value for name, value in content["tags"].items()}
        elif kind == "metrics":
            self.step = int(content["step"])
        elif kind == "status":
            self.status = str(content["status"])


class Spool:
    """Writes the spool. Only one process writes at a time, since it holds the run folder's lock; others may read.

    Opening it cuts off a partial last line, left by a kill; no reader has ever returned that line.

    Raises:
        OSError: the file cannot be read or written.
    """

    def __init__(self, run: Path) -> None:
        self._run, self._path = run, run / SPOOL
        self._newest = newest_run(run)
        if self._path.is_file():
            os.truncate(self._path, _whole_lines(self._path))

    @property
    def key(self) -> str:
        """Key by which MLflow finds the run; "" before the run has begun."""
        return self._newest.key

    def begin(
        self, step: int, experiment: str, name: str, params: dict[str, str], tags: dict[str, str], key: str = ""
    ) -> None:
        """Record that a training process starts after `step` steps.

        MLflow does not allow parameters to change, so a setting that a continuation changes becomes a tag
        `continued.<name>`. A run that starts over from step 0 with other settings becomes another MLflow run, as does a
        copy of a run folder.

        Args:
            key: the run's key in the checkpoint, used where the spool has been lost; "" for a new run.
        """
        if origin := copied_from(self._run):
            log.info(f"{self._run} is a copy of {origin}; it gets an MLflow run of its own")
            tags = tags | {"trelm.copied_from": str(origin), "trelm.copied_from_key": self.key}
            self._begin_copy(step, experiment, name, tags)
            key = ""
        before, now = self._newest.settings, params | tags
        changed = {} if before is None else {key: value for key, value in now.items() if before.get(key) != value}
        if before is None or (step == 0 and changed):
            if before is not None and self._newest.status == "RUNNING":
                self.status("FAILED")  # its process was killed
            self._append(
                {
                    "kind": "run",
                    "key": (key if before is None else "") or uuid.uuid4().hex,
                    "experiment": experiment,
                    "name": name,
                    "time": _now(),
                    "params": params,
                    "tags": tags,
                    "folder": self._folder,
                }
            )
            return
        if changed:
            self._append({"kind": "tags", "tags": {f"{CONTINUED}{key}": value for key, value in changed.items()}})
        self.status("RUNNING", folder=self._folder)

    def _begin_copy(self, step: int, experiment: str, name: str, tags: dict[str, str]) -> None:
        """Replace the spool of a copied run folder: its run up to `step` as one with a key of its own."""
        kept: list[dict[str, Any]] = []
        for entry in read_spool(self._path):
            if entry.kind == "run":
                own = {"key": uuid.uuid4().hex, "experiment": experiment, "name": name}
                kept = [entry.content | own | {"tags": entry.content["tags"] | tags, "folder": self._folder}]
            elif entry.kind != "status" and entry.content.get("step", 0) <= step:
                kept.append(entry.content)
        kept = kept if step else []  # nothing to go on with: it starts over
        write_atomically(self._path, "".join(json.dumps(content) + "\n" for content in kept))
        self._newest = newest_run(self._run)

    @property
    def _folder(self) -> str:
        return str(self._run.resolve())

    def metrics(self, step: int, metrics: dict[str, float]) -> bool:
        """Record a log point unless its step is recorded already; return whether it was recorded.

        A continued run repeats the steps after its checkpoint exactly, and each point must appear once.
        """
        if step <= self._newest.step:
            return False
        self._append({"kind": "metrics", "step": step, "time": _now(), "metrics": metrics})
        return True

    def file(self, name: str) -> None:
        """Record a file of the run folder to upload, with the content it has when it is sent."""
        self._append({"kind": "file", "name": name})

    def tags(self, tags: dict[str, str]) -> None:
        """Record tags that the run gets."""
        self._append({"kind": "tags", "tags": tags})

    def status(self, status: str, **more: str) -> None:
        """Record the run's status: RUNNING, FINISHED, KILLED or FAILED."""
        self._append({"kind": "status", "status": status, "time": _now()} | more)

    def _append(self, content: dict[str, Any]) -> None:
        append_line(self._path, json.dumps(content))
        self._newest.update(content)


def newest_run(run: Path) -> SpooledRun:
    """Return the newest run in the spool of a run folder."""
    newest = SpooledRun()
    for entry in read_spool(run / SPOOL):
        newest.update(entry.content)
    return newest


def copied_from(run: Path) -> Path | None:
    """Return the run folder that this one is a copy of: another one with the same run; None if it was moved."""
    newest = newest_run(run)
    origin = Path(newest.folder)
    try:
        if not newest.folder or not origin.is_dir() or origin.samefile(run):
            return None
        begun = [entry.content["key"] for entry in read_spool(origin / SPOOL) if entry.kind == "run"]
    except OSError:  # another user's, or of another machine
        return None
    return origin if newest.key in begun else None


def read_spool(path: Path, start: int = 0) -> Iterator[SpoolEntry]:
    """Yield the complete entries from byte `start` on, skipping lines that are no entries, as a power cut may leave.

    Raises:
        OSError: the file exists but cannot be read.
    """
    if not path.is_file():
        return
    with path.open("rb") as stream:
        stream.seek(start)
        end = start
        for line in stream:
            if not line.endswith(b"\n"):
                return  # still being written, or cut short by a kill
            begin, end = end, end + len(line)
            try:
                content = json.loads(line)
                kind = content["kind"]
            except (ValueError, TypeError, KeyError):
                continue
            if kind in _KINDS:
                yield SpoolEntry(content, begin, end)


def _whole_lines(path: Path) -> int:
    """Count the bytes up to and including the last newline, reading from the end."""
    with path.open("rb") as stream:
        end = stream.seek(0, os.SEEK_END)
        while end > 0:
            begin = max(0, end - (1 << 16))
            stream.seek(begin)
            found = stream.read(end - begin).rfind(b"\n")
            if found >= 0:
                return begin + found + 1
            end = begin
    return 0


def _now() -> int:
    return int(time.time() * 1000)
