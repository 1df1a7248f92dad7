"""The Slurm jobs of a run, as recorded by `trelm submit` and by the job scripts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trelm_ds.files import read_json_lines
from trelm_ds.run_folder import HISTORY, SUBMISSIONS

JOB_NOTE = "job.json"  # in the folder of a submission


@dataclass
class Job:
    """One Slurm job of a run.

    Attributes:
        number: Slurm's job number.
        submitted: folder of its submission; None if it was not submitted by `trelm submit`.
        events: events recorded by its script, in order: event (start, requeue, end, stalled), step, restart, time,
            nodes, log, text, code (the exit code of an end).
        log: log file; None if unknown.
    """

    number: str
    submitted: Path | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    log: str | None = None


def jobs_of(run: Path) -> list[Job]:
    """List the jobs of a run, newest last."""
    jobs: dict[str, Job] = {}
    since: dict[str, str] = {}
    for folder in submissions(run):
        note = read_note(folder)
        if number := note.get("job"):
            jobs[str(number)] = Job(str(number), folder, log=note.get("log"))
            since[str(number)] = str(note.get("time", ""))
    try:
        events = read_json_lines(run / HISTORY)
    except OSError:  # what Slurm knows is still worth showing
        events = []
    for event in events:
        if not (isinstance(number := event.get("job"), str) and isinstance(event.get("event"), str)):
            continue
        job = jobs.setdefault(number, Job(number))
        job.events.append(event)
        job.log = event.get("log") or job.log
        since[number] = max(since.get(number, ""), str(event.get("time", "")))
    return sorted(jobs.values(), key=lambda job: since[job.number])  # stable: jobs of the same second keep their order


def submissions(run: Path) -> list[Path]:
    """List the folders of all submissions, newest last."""
    found = [path for path in (run / SUBMISSIONS).glob("*") if path.name.isdigit()]
    return sorted(found, key=lambda path: int(path.name))


def read_note(submission: Path) -> dict[str, Any]:
    """Read a submission's `job.json`: job, time, log, or error; empty if sbatch has not answered."""
    try:
        note = json.loads((submission / JOB_NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}
