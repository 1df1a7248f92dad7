"""Slurm's own commands, as far as submission and status ask them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from trelm_ds.errors import UserError

_TIMEOUT_S = 60  # a controller that is busy or away must not hold `trelm status` for ever
_OVER = {
    *("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"),
    *("PREEMPTED", "REVOKED"),
}


def installed() -> bool:
    """Whether jobs can be submitted from this machine."""
    return shutil.which("sbatch") is not None


def job_fields(job: str) -> dict[str, str] | None:
    """What `scontrol show job` says of a job: JobState, Reason, NodeList, StdOut ...

    Returns:
        Empty where Slurm does not know the job (any more); None where Slurm cannot be asked.
    """
    try:
        done = _run(["scontrol", "show", "job", "-o", job])
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return {} if "Invalid job id" in done.stderr else None
    return dict(re.findall(r"(\S+?)=(\S*)", done.stdout))


def is_over(state: str) -> bool:
    """Whether a job in this state never runs again by itself."""
    return state in _OVER


def jobs_under_way(jobs: Sequence[str]) -> dict[str, str]:
    """Those of the jobs that wait or run, with their state.

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
    """Runs sbatch.

    Args:
        arguments: options and, unless `text` is given, the batch file.
        environment: for sbatch and, by Slurm's defaults, for the job.
        text: a batch file's content, handed over without a file.

    Raises:
        UserError: sbatch refused; its own words in one line.
    """
    try:
        done = subprocess.run(["sbatch", *arguments], input=text, env=environment, capture_output=True, text=True)
    except OSError as error:
        raise UserError(f"sbatch: {error.strerror}") from None
    if done.returncode:
        raise UserError(f"sbatch: {one_line(done.stderr) or f'exit code {done.returncode}'}")
    return done


def one_line(errors: str) -> str:
    """What a Slurm command wrote to stderr, without its name and the hint at its help."""
    lines = [re.sub(r"^\w+: (error: |fatal: )?", "", line).strip() for line in errors.splitlines()]
    return "; ".join(line for line in lines if line and not line.startswith("Try "))


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
