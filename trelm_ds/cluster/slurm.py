"""Wrappers of the Slurm commands that submission and status use."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from trelm_ds.errors import UserError

_TIMEOUT_S = 60  # a busy or absent controller must not block `trelm status`
_OVER = {
    *("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"),
    *("PREEMPTED", "REVOKED"),
}


def installed() -> bool:
    """Tell whether Slurm's commands are on this machine."""
    return shutil.which("sbatch") is not None


def job_fields(job: str) -> dict[str, str] | None:
    """Return the fields of `scontrol show job`: JobState, Reason, NodeList, StdOut ...

    Returns:
        The fields; empty if Slurm does not know the job (any more), None if Slurm cannot be reached.
    """
    try:
        done = _run(["scontrol", "show", "job", "-o", job])
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return {} if "Invalid job id" in done.stderr else None
    return dict(re.findall(r"(\S+?)=(\S*)", done.stdout))


def is_over(state: str) -> bool:
    """Tell whether a job in this state has ended for good."""
    return state in _OVER


def active_jobs(jobs: Sequence[str]) -> dict[str, str]:
    """Return those of the jobs that wait or run, with their states.

    Raises:
        UserError: Slurm does not answer.
    """
    if not jobs:
        return {}
    try:
        done = _run(["squeue", "--noheader", "--states=all", "--format=%i|%T", f"--jobs={','.join(jobs)}"])
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"squeue: {error}") from None
    if done.returncode and "Invalid job id" in done.stderr:
        return {}
    if done.returncode:
        raise UserError(f"squeue: {one_line(done.stderr)}")
    found = dict(line.split("|", 1) for line in done.stdout.splitlines() if "|" in line)
    return {job: state for job, state in found.items() if not is_over(state) and state != "COMPLETING"}


def sbatch(
    arguments: Sequence[str], environment: Mapping[str, str], text: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run sbatch.

    Args:
        arguments: options and, unless `text` is given, the batch file.
        environment: environment of sbatch and, by Slurm's default, of the job.
        text: content of a batch file, passed on stdin.

    Raises:
        UserError: sbatch refused; the message is sbatch's own, in one line.
    """
    try:
        done = subprocess.run(["sbatch", *arguments], input=text, env=environment, capture_output=True, text=True)
    except OSError as error:
        raise UserError(f"sbatch: {error.strerror}") from None
    if done.returncode:
        raise UserError(f"sbatch: {one_line(done.stderr) or f'exit code {done.returncode}'}")
    return done


def outside_jobs(environment: Mapping[str, str]) -> dict[str, str]:
    """Leave out the variables of the job that this process runs in, if any: sbatch would hand them on."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith("SLURM_") or name.startswith(("SLURM_CONF", "SLURM_JWT", "SLURM_SACK"))
    }


def one_line(errors: str) -> str:
    """Join a Slurm command's stderr into one line, without the command's name and the hint to its help."""
    lines = [re.sub(r"^\w+: (error: |fatal: )?", "", line).strip() for line in errors.splitlines()]
    return "; ".join(line for line in lines if line and not line.startswith("Try "))


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
