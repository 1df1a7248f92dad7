"""Kill the run at a named point, for tests: `TRELM_KILL_AT=POINT[:N[:RANK]]`.

The process that reaches POINT for the N-th time (from 1; default 1) on RANK (default: any) kills itself with SIGKILL.
With RANK `all` it also kills its parent and the parent's other children, as a power failure of the node would.
Without the variable nothing happens. tools/kill_run.py and the tests use it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter

POINTS = (
    "step-read",  # the step's batch has been read
    "routing-refreshed",  # new paths are installed
    "step-backward",  # gradients are complete, nothing is updated
    "step-updated",  # the weights are updated, the memory bank is not
    "step-done",  # before the log point
    "log-written",  # metrics.jsonl holds the log point
    "save-started",  # the hidden folder exists, with the tokenizer alone
    "save-mid-file",  # part of a file is written
    "save-between-files",  # DeepSpeed's files are written, the other parts' are not
    "save-written",  # all of this rank's files are written, no manifest
    "commit-before-manifest",
    "commit-before-rename",
    "commit-before-pointer",
    "commit-before-prune",
    "prune-mid",  # the manifest of an old checkpoint is gone, its files are not
)

_reached: Counter[str] = Counter()
_launchers: list[int] = []  # the parent, as it was at the first point


def reach(point: str) -> None:
    """Mark a point of the program, and die there if the environment says so."""
    if plan := os.environ.get("TRELM_KILL_AT"):
        _reached[point] += 1
        if not _launchers:
            _launchers.append(os.getppid())
        name, _, rest = plan.partition(":")
        number, _, rank = rest.partition(":")
        if name == point and _reached[point] == int(number or 1) and rank in ("", "all", os.environ.get("RANK", "0")):
            _kill(everyone=rank == "all")


def _kill(everyone: bool) -> None:
    if everyone:
        import psutil

        # A rank that comes second has been adopted meanwhile, by init or the like, whose other children live on.
        node: list[psutil.Process] = []
        if os.getppid() == _launchers[0] != 1:
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = psutil.Process(_launchers[0])
                node = [parent, *parent.children()]
        for process in node:
            if process.pid != os.getpid():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
    os.kill(os.getpid(), signal.SIGKILL)
