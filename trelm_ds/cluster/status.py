"""`trelm status`: how a run is doing, from its folder and, where there is one, from Slurm. Reads only."""

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

_RECENT = 20  # log points that the speed is a mean of
_QUIET_S = 600.0  # without a log point, where the file system has no locks: not running
_STOPPED = (75, 130, 138, 143)  # exit codes of docs/checkpoints.md: somebody or something asked the run to stop
_LIVE = ("pending", "running", "requeued")


@dataclass
class Status:
    """How a run is doing; None is what is not known or does not apply.

    Attributes:
        run: its folder.
        state: not started, pending, running, requeued (waits to start again), done, failed, stalled (restarts without
            progress), stopped (by whoever asked it to).
        reason: why, in Slurm's words or the job script's.
        job, nodes, restarts, log: of its newest Slurm job; nodes in Slurm's notation.
        step, max_steps: optimizer steps.
        loss, tokens_per_s, skipped_steps: of the last log point.
        logged_s: since that, in seconds.
        remaining_s: training that is left at the speed of the last points.
        ends_at: seconds since 1970, of a run that is training.
        checkpoint_step, checkpoint_s: of the newest commit, and seconds since it.
        event, event_s: what the job script noted last, and seconds since that.
        unsent: entries that MLflow does not have.
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
        """Whether it goes on by itself."""
        return self.state in _LIVE


def is_run(run: Path) -> bool:
    """Whether a folder is one of `trelm pretrain` or `trelm submit`."""
    names = (CONFIG, METRICS, HISTORY, SUBMISSIONS)
    return any((run / name).exists() for name in names) or checkpoints_folder(run).is_dir()


def status_of(run: Path) -> Status:
    """Looks at a run folder, and asks Slurm for its newest job. Never fails for what is damaged or missing there."""
    now = time.time()
    status = Status(run, "not started", unsent=unsent_entries(run))
    max_steps, batch_size = _settings(run)
    status.max_steps = max_steps
    if newest := next(iter(committed(run)), None):
        status.checkpoint_step = step_of(newest)
        status.checkpoint_s = _age(checkpoints_folder(run) / POINTER, now)
    points = read_metrics(run)
    _take_points(status, points, batch_size)
    if points:
        status.logged_s = _age(run / METRICS, now)
    status.step = max(status.step, status.checkpoint_step or 0)
    _judge(status, run)
    if not status.live:
        status.remaining_s = None
    elif status.state == "running" and status.remaining_s is not None:
        status.ends_at = now + status.remaining_s
    return status


def _settings(run: Path) -> tuple[int | None, int | None]:
    """trainer.max_steps and trainer.global_batch_size as last resolved: by the run, or for one that is to start."""
    found = [path for path in (run / CONFIG, *(folder / CONFIG for folder in submissions(run)[-1:])) if path.is_file()]
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            trainer = yaml.safe_load(path.read_text(encoding="utf-8"))["trainer"]
            return int(trainer["max_steps"]), int(trainer["global_batch_size"])
    return None, None


def _take_points(status: Status, points: Sequence[dict[str, float]], batch_size: int | None) -> None:
    """The last log point, and from the last ones how long the rest takes, waiting for checkpoints included."""
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


def _judge(status: Status, run: Path) -> None:
    """State and reason, with what is known of the newest job."""
    finished = status.max_steps is not None and (status.checkpoint_step or 0) >= status.max_steps
    jobs = jobs_of(run)
    fields = None
    if jobs:
        job = jobs[-1]
        fields = slurm.job_fields(job.number)
        _take_job(status, job, fields or {})
        if fields and not slurm.is_over(fields.get("JobState", "")):
            _judge_live(status, job, fields)
            return
    locked = is_locked(run / LOCK)
    if locked is None:  # no locks on this file system: by the last log point
        locked = not finished and status.logged_s is not None and status.logged_s < _QUIET_S
    if locked:
        status.state, status.reason = "running", None if not jobs else "not by a Slurm job that is known here"
    elif jobs:
        _judge_ended(status, jobs[-1], fields, finished)
    elif finished:
        status.state = "done"
    elif status.step:
        status.state = "stopped"
    elif (run / CONFIG).is_file():
        status.state, status.reason = "stopped", "before its first log point"
    else:
        status.reason = next((read_note(folder).get("error") for folder in reversed(submissions(run))), None)


def _take_job(status: Status, job: Job, fields: dict[str, str]) -> None:
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


def _judge_live(status: Status, job: Job, fields: dict[str, str]) -> None:
    """A job that Slurm has waiting or running."""
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
        _judge_ended(status, job, fields, False)
    else:
        status.state = "running"
        status.reason = None if name == "RUNNING" else name.lower()


def _judge_ended(status: Status, job: Job, fields: dict[str, str] | None, finished: bool) -> None:
    """A job that Slurm has no longer, or that cannot be asked for.

    Args:
        status: to complete.
        job: the newest of the run.
        fields: Slurm's, empty where it does not know the job, None where it cannot be asked.
        finished: whether the last commit is that of the last step.
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
    try:
        return max(0.0, now - path.stat().st_mtime)
    except OSError:
        return None


def to_plain(status: Status) -> dict[str, Any]:
    """For machines: every attribute; times in seconds, `ends_at` in local time with its offset."""
    plain: dict[str, Any] = dict(vars(status))
    plain["run"] = str(status.run)
    if status.ends_at is not None:
        plain["ends_at"] = datetime.fromtimestamp(status.ends_at).astimezone().isoformat(timespec="seconds")
    finite = {name: not isinstance(value, float) or math.isfinite(value) for name, value in plain.items()}
    return {name: value if finite[name] else None for name, value in plain.items()}
