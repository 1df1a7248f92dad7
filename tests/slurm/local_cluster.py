"""A two-node Slurm on this host (tools/local_slurm.sh), as the tests of this folder use it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
LOCAL_SLURM = REPO / "tools" / "local_slurm.sh"
_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"}


def until(true: Callable[[], bool], what: str | Callable[[], str], seconds: float = 900) -> None:
    """Polls; the limit is there to end a hanging test, not to measure."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:.0f} s in vain: {what if isinstance(what, str) else what()}")
        time.sleep(0.2)


def local_slurm(command: str, root: Path, node: str = "") -> subprocess.CompletedProcess[str]:
    """Runs tools/local_slurm.sh. The output goes through a file: its daemons would hold a pipe open."""
    with tempfile.TemporaryFile("w+") as output:
        arguments = [command, *([node] if node else []), root]
        code = subprocess.run([LOCAL_SLURM, *arguments], stdout=output, stderr=output, check=False).returncode
        output.seek(0)
        return subprocess.CompletedProcess([command], code, output.read())


def processes_of(root: Path) -> dict[int, str]:
    """Command lines, by process id, of what belongs to the cluster under `root`: its daemons, its jobs."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:  # it ended meanwhile
            continue
        if command and f"SLURM_CONF={root}/slurm.conf".encode() in environment.split(b"\0"):
            found[int(process.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


class Cluster:
    """Submits jobs to the cluster under `root` and tells how they ended."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """A Slurm command, started in the repository, with `variables` added to an environment free of TRELM_*.

        Nodes are not checked unless the variables ask for it: their GPUs are made up, and it takes a while.
        """
        # TRITON_ and TORCHINDUCTOR_: an earlier test's rank in this process has set their caches' folders.
        other = ("TRELM_", "SLURM_", "SBATCH_", "OMP_", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(other)}
        own = {"SLURM_CONF": f"{self.root}/slurm.conf", "TRELM_VENV": sys.prefix, "TRELM_HEALTH": "0"}
        environment = clean | own | variables
        return subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=False)

    def submit(self, *arguments: str | Path, **variables: str) -> str:
        """`sbatch`; returns the job's number."""
        done = self.run("sbatch", "--parsable", *arguments, **variables)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """The fields of `scontrol show job`."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "show", "job", "-o", number).stdout))

    def wait(self, number: str) -> dict[str, str]:
        """The job's fields once it has ended."""
        until(lambda: self.job(number)["JobState"] in _ENDED, lambda: self.told(number))
        return self.job(number)

    def told(self, number: str) -> str:
        """Tells what there is to know of a job that does not end: its state, its log, the processes of the cluster."""
        job = self.job(number)
        log = Path(job.get("StdOut", "/dev/null")).read_text(errors="replace")[-4000:]
        lines = [f"the end of job {number}", *(f"{key}={value}" for key, value in job.items()), log]
        return "\n".join([*lines, *map(str, sorted(processes_of(self.root).items()))])
