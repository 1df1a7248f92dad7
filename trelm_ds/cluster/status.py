"""`trelm status`: the state of a run, read from its folder and, if there is one, from Slurm. Writes nothing."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from trelm_ds.cluster import slurm
from trelm_ds.cluster.history import Job, jobs_of, read_note, submissions
from trelm_ds.files import is_locked
from trelm_ds.run_folder import (
    CONFIG,
    HISTORY,
    LOCK,
    METRICS,
    POINTER,
    SUBMISSIONS,
    checkpoints_folder,
    committed,
    read_metrics,
    step_of,
    unsent_entries,
)

_RECENT = 20  # log points to average the speed over
_QUIET_S = 600.0  # no log point for this long means not running, on file systems without locks
_STOPPED = (75, 130, 138, 143)  # exit codes of a requested stop, see docs/checkpoints.md
_LIVE = ("pending", "running", "requeued")


@dataclass
class Status:
    """State of a run; None means unknown or not applicable.

    Attributes:
        run: run folder.
        state: not started, pending, running, requeued (waiting to start again), done, failed, stalled (restarted
            without progress), stopped (on request).
        reason: reason for the state, in Slurm's words or the job script's.
        job, nodes, restarts, log: newest Slurm job; nodes in Slurm's notation.
        step, max_steps: optimizer steps.
        loss, tokens_per_s, skipped_steps: values at the last log point.
        logged_s: seconds since the last log point.
        remaining_s: seconds of training left at the speed of the last log points.
        ends_at: expected end in seconds since 1970, for a run that is training.
        checkpoint_step, checkpoint_s: step of the newest checkpoint, and seconds since it was committed.
        event, event_s: last event recorded by the job script, and seconds since then.
        unsent: entries not yet sent to MLflow.
    """

    run: Path
    state: str
    reason: str | None = None
    job: str | None = None
    nodes: str | None = None
    restarts: int | None = None
    log: str | None = None
    step: int = 0
    max_steps: int | None = None
    loss: float | None = None
    tokens_per_s: float | None = None
    skipped_steps: int | None = None
    logged_s: float | None = None
    remaining_s: float | None = None
    ends_at: float | None = None
    checkpoint_step: int | None = None
    checkpoint_s: float | None = None
    event: str | None = None
    event_s: float | None = None
    unsent: int = 0

    @property
    def live(self) -> bool:
        """Whether the run is running or will start by itself."""
        return self.state in _LIVE


def is_run(run: Path) -> bool:
    """Tell whether a folder was made by `trelm pretrain` or `trelm submit`."""
    names = (CONFIG, METRICS, HISTORY, SUBMISSIONS)
    return any((run / name).exists() for name in names) or checkpoints_folder(run).is_dir()


def status_of(run: Path) -> Status:
    """Determine a run's state from its folder and from Slurm. Damaged or missing files never make it fail."""
    now = time.time()
    status = Status(run, "not started", unsent=unsent_entries(run))
    max_steps, batch_size = _settings(run)
    status.max_steps = max_steps
    if newest := next(iter(committed(run)), None):
        status.checkpoint_step = step_of(newest)
        status.checkpoint_s = _age(checkpoints_folder(run) / POINTER, now)
    points = read_metrics(run)
    _fill_metrics(status, points, batch_size)
    if points:
        status.logged_s = _age(run / METRICS, now)
    status.step = max(status.step, status.checkpoint_step or 0)
    _fill_state(status, run)
    if not status.live:
        status.remaining_s = None
    elif status.state == "running" and status.remaining_s is not None:
        status.ends_at = now + status.remaining_s
    return status


def _settings(run: Path) -> tuple[int | None, int | None]:
    """Read trainer.max_steps and trainer.global_batch_size from the newest config of the run or its last submission."""
    found = [path for path in (run / CONFIG, *(folder / CONFIG for folder in submissions(run)[-1:])) if path.is_file()]
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            trainer = yaml.safe_load(path.read_text(encoding="utf-8"))["trainer"]
            return int(trainer["max_steps"]), int(trainer["global_batch_size"])
    return None, None


def _fill_metrics(status: Status, points: Sequence[dict[str, float]], batch_size: int | None) -> None:
    """Fill in the last log point, and estimate the remaining time, including waits for checkpoints."""
    if not points:
        return
    last = points[-1]
    status.step = int(last["step"])
    status.loss = last["loss"]
    status.tokens_per_s = last.get("tokens_per_s")
    if "skipped_steps" in last:
        status.skipped_steps = int(last["skipped_steps"])
    steps = seconds = 0.0
    for before, point in zip([{"step": 0.0}, *points][-_RECENT - 1 : -1], points[-_RECENT:], strict=True):
        rate, number = point.get("sequences_per_s", 0.0), point["step"] - before["step"]
        if rate > 0 and math.isfinite(rate) and batch_size and number > 0:
            steps += number
            seconds += number * batch_size / rate + point.get("checkpoint_wait_s", 0.0)
    if steps and status.max_steps is not None:
        status.remaining_s = max(0, status.max_steps - status.step) * seconds / steps


def _fill_state(status: Status, run: Path) -> None:
    """Fill in state, reason and the newest job."""
    finished = status.max_steps is not None and (status.checkpoint_step or 0) >= status.max_steps
    jobs = jobs_of(run)
    fields = None
    if jobs:
        job = jobs[-1]
        fields = slurm.job_fields(job.number)
        _fill_job(status, job, fields or {})
        if fields and not slurm.is_over(fields.get("JobState", "")):
            _fill_live_state(status, job, fields)
            return
    locked = is_locked(run / LOCK)
    if locked is None:  # no locks on this file system: go by the age of the last log point
        locked = not finished and status.logged_s is not None and status.logged_s < _QUIET_S
    if locked:
        status.state, status.reason = "running", None if not jobs else "not by a Slurm job that is known here"
    elif jobs:
        _fill_ended_state(status, jobs[-1], fields, finished)
    elif finished:
        status.state = "done"
    elif status.step:
        status.state = "stopped"
    elif (run / CONFIG).is_file():
        status.state, status.reason = "stopped", "before its first log point"
    else:
        status.reason = next((read_note(folder).get("error") for folder in reversed(submissions(run))), None)


def _fill_job(status: Status, job: Job, fields: dict[str, str]) -> None:
    """Fill in what Slurm's fields and the script's events say about a job."""
    last = job.events[-1] if job.events else {}
    status.job = job.number
    status.log = fields.get("StdOut") or job.log
    nodes = fields.get("NodeList", "(null)")
    status.nodes = (nodes if nodes not in ("", "(null)") else str(last.get("nodes") or "")) or None
    noted = [int(event["restart"]) for event in job.events if isinstance(event.get("restart"), int)]
    status.restarts = max([*noted, int(fields.get("Restarts", 0))])
    if last:
        status.event = f"{last['event']}: {last['text']}" if last.get("text") else str(last["event"])
        with contextlib.suppress(TypeError, ValueError, KeyError):
            status.event_s = max(0.0, time.time() - datetime.fromisoformat(str(last["time"])).timestamp())


def _fill_live_state(status: Status, job: Job, fields: dict[str, str]) -> None:
    """Fill in the state of a job that is waiting or running in Slurm."""
    name = fields["JobState"]
    last = job.events[-1]["event"] if job.events else None
    if name in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"):
        began = status.restarts or last is not None
        status.state = "requeued" if began else "pending"
        status.reason = fields.get("Reason")
        if fields.get("StartTime", "Unknown") not in ("Unknown", "N/A"):
            status.reason = f"{status.reason}, expected to start {fields['StartTime'].replace('T', ' ')}"
        status.nodes = None
    elif name == "COMPLETING" and last in ("end", "stalled"):
        _fill_ended_state(status, job, fields, False)
    else:
        status.state = "running"
        status.reason = None if name == "RUNNING" else name.lower()


def _fill_ended_state(status: Status, job: Job, fields: dict[str, str] | None, finished: bool) -> None:
    """Fill in the state of a job that has ended, or that Slurm cannot be asked about.

    Args:
        status: status to fill in.
        job: newest job of the run.
        fields: Slurm's fields; empty if it does not know the job, None if it cannot be reached.
        finished: whether the last step is committed.
    """
    last = job.events[-1] if job.events else {}
    event, text = last.get("event"), str(last.get("text") or "")
    state = (fields or {}).get("JobState")
    if finished or (event == "end" and last.get("code") == 0):
        status.state = "done"
    elif event == "stalled":
        status.state, status.reason = "stalled", text
    elif event == "end":
        status.state, status.reason = ("stopped" if last.get("code") in _STOPPED else "failed"), text
    elif state is not None:
        status.state = "stopped" if state == "CANCELLED" else "failed"
        status.reason = " ".join([f"Slurm: {state}", *([f"after {text}"] if text else [])])
    elif fields is None:
        status.state = {"start": "running", "requeue": "requeued", None: "pending"}.get(event, "failed")
        status.reason = "as noted last; Slurm cannot be asked here"
    else:
        status.state = "failed" if job.events else "stopped"
        status.reason = f"Slurm no longer knows job {job.number}, which " + (
            "ended without a note" if job.events else "never began"
        )


def _age(path: Path, now: float) -> float | None:
    """Return the seconds since a file was modified; None if it does not exist."""
    try:
        return max(0.0, now - path.stat().st_mtime)
    except OSError:
        return None


def to_plain(status: Status) -> dict[str, Any]:
    """Convert to JSON values: times in seconds, `ends_at` in local time with UTC offset, NaN and infinity as None."""
    plain: dict[str, Any] = dict(vars(status))
    plain["run"] = str(status.run)
    if status.ends_at is not None:
        plain["ends_at"] = datetime.fromtimestamp(status.ends_at).astimezone().isoformat(timespec="seconds")
    finite = {name: not isinstance(value, float) or math.isfinite(value) for name, value in plain.items()}
    return {name: value if finite[name] else None for name, value in plain.items()}
