"""What MLflow is to hear of a run, in order: lines appended to a file in the run folder.

The file is the whole log, not a queue: how much of it MLflow has is noted beside it (`mlflow_run.json`), and what is in
doubt can be sent again from the start. Each line is a JSON object with a "kind":

- run: an MLflow run begins. key (unique), experiment, name, time, params, tags
- tags: what a continuation does otherwise
- metrics: of one log point. step, time, metrics. Steps only grow within a run
- file: name of a file in the run folder
- status: RUNNING, FINISHED, KILLED or FAILED. time

Times are milliseconds since 1970, taken when the thing happened.
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

from trelm_ds.files import append_line
from trelm_ds.run_folder import SPOOL

_KINDS = ("run", "tags", "metrics", "file", "status")
_CONTINUED = "continued."


class Entry(NamedTuple):
    """A line of the spool.

    Attributes:
        content: the JSON object.
        start, end: its bytes in the file.
    """

    content: dict[str, Any]
    start: int
    end: int

    @property
    def kind(self) -> str:
        return str(self.content["kind"])


@dataclass
class Recorded:
    """What the spool says of the newest run in it.

    Attributes:
        settings: its parameters and tags as last recorded, by name; None where no run has begun.
        step: of its last log point; 0 before the first.
        status: its last one.
        key: its own.
    """

    settings: dict[str, str] | None = None
    step: int = 0
    status: str = "RUNNING"
    key: str = ""

    def note(self, content: dict[str, Any]) -> None:
        """Takes in the next entry."""
        kind = content["kind"]
        if kind == "run":
            self.settings, self.step, self.status = content["params"] | content["tags"], 0, "RUNNING"
            self.key = str(content["key"])
        elif kind == "tags" and self.settings is not None:
            self.settings |= {name.removeprefix(_CONTINUED): value for name, value in content["tags"].items()}
        elif kind == "metrics":
            self.step = int(content["step"])
        elif kind == "status":
            self.status = str(content["status"])


class Spool:
    """The writing side. One process writes at a time (the run folder is locked), others may read.

    Args:
        run: the run folder. A line that a kill cut short is taken off the file there; it was never read.

    Raises:
        OSError: the file cannot be read or written.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / SPOOL
        self._recorded = Recorded()
        for entry in read(self._path):
            self._recorded.note(entry.content)
        if self._path.is_file():
            os.truncate(self._path, _whole_lines(self._path))

    @property
    def key(self) -> str:
        """By which MLflow knows the run; "" before it has begun."""
        return self._recorded.key

    def begin(
        self, step: int, experiment: str, name: str, params: dict[str, str], tags: dict[str, str], key: str = ""
    ) -> None:
        """A training process begins, at `step` steps done before.

        Parameters of a run cannot be changed, so what a continuation does otherwise becomes a tag
        `continued.<name>`. A run that starts from step 0 again with other settings is another MLflow run. `key` is what
        the checkpoint says of the run, for where the spool has been lost.
        """
        before, now = self._recorded.settings, params | tags
        changed = {} if before is None else {key: value for key, value in now.items() if before.get(key) != value}
        if before is None or (step == 0 and changed):
            if before is not None and self._recorded.status == "RUNNING":
                self.status("FAILED")  # it was killed
            self._append(
                {
                    "kind": "run",
                    "key": (key if before is None else "") or uuid.uuid4().hex,
                    "experiment": experiment,
                    "name": name,
                    "time": _now(),
                    "params": params,
                    "tags": tags,
                }
            )
            return
        if changed:
            self._append({"kind": "tags", "tags": {f"{_CONTINUED}{key}": value for key, value in changed.items()}})
        self.status("RUNNING")

    def metrics(self, step: int, metrics: dict[str, float]) -> bool:
        """A log point. One at or before a step that is recorded already is not recorded again.

        A continued run repeats the steps after its checkpoint, exactly; recording them twice would show every point
        twice. Returns whether it was recorded.
        """
        if step <= self._recorded.step:
            return False
        self._append({"kind": "metrics", "step": step, "time": _now(), "metrics": metrics})
        return True

    def file(self, name: str) -> None:
        """A file of the run folder, as it is when it is sent."""
        self._append({"kind": "file", "name": name})

    def status(self, status: str) -> None:
        self._append({"kind": "status", "status": status, "time": _now()})

    def _append(self, content: dict[str, Any]) -> None:
        append_line(self._path, json.dumps(content))
        self._recorded.note(content)


def read(path: Path, start: int = 0) -> Iterator[Entry]:
    """The whole entries from byte `start` on. Lines that are no entry (a power cut) are passed over.

    Raises:
        OSError: the file is there and cannot be read.
    """
    if not path.is_file():
        return
    with path.open("rb") as stream:
        stream.seek(start)
        end = start
        for line in stream:
            if not line.endswith(b"\n"):
                return  # still being written, or cut short
            begin, end = end, end + len(line)
            try:
                content = json.loads(line)
                kind = content["kind"]
            except (ValueError, TypeError, KeyError):
                continue
            if kind in _KINDS:
                yield Entry(content, begin, end)


def _whole_lines(path: Path) -> int:
    """Bytes up to and with the last newline."""
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
