"""tools/local_slurm.sh: a cluster that starts once, survives a crash and leaves nothing behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.slurm.local_cluster import Cluster, local_slurm, processes_of, until

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_local_slurm_starts_once_and_afresh_after_a_crash(empty_root: Path) -> None:
    up = local_slurm("up", empty_root)
    assert (up.returncode, up.stdout) == (0, f"export SLURM_CONF={empty_root}/slurm.conf\n")
    daemons = {name: (empty_root / "run" / f"{name}.pid").read_text() for name in ("munged", "slurmctld", "n1", "n2")}
    assert local_slurm("up", empty_root).stdout == up.stdout
    assert daemons == {name: (empty_root / "run" / f"{name}.pid").read_text() for name in daemons}
    assert local_slurm("status", empty_root).returncode == 0

    cluster = Cluster(empty_root)
    cluster.submit("--wrap", "srun sleep 1000", "-o", "/dev/null")
    until(lambda: any("sleep 1000" in process for process in processes_of(empty_root).values()), "the job's start")
    os.kill(int(daemons["slurmctld"]), signal.SIGKILL)
    until(lambda: local_slurm("status", empty_root).returncode == 1, "the end of slurmctld")
    assert local_slurm("up", empty_root).returncode == 0
    assert not any("sleep 1000" in process for process in processes_of(empty_root).values())
    assert cluster.wait(cluster.submit("--wrap", "srun true", "-o", "/dev/null"))["JobState"] == "COMPLETED"
    # The fixture takes the cluster down and looks for processes left behind.


def test_local_slurm_touches_no_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    for command in ("down", "up"):
        done = local_slurm(command, tmp_path)
        assert done.returncode == 2
        assert done.stdout.startswith("local_slurm: ")
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_node_crashes_and_boots(empty_root: Path) -> None:
    assert local_slurm("crash", empty_root, "n1").stdout == f"local_slurm: not running under {empty_root}\n"
    assert local_slurm("up", empty_root).returncode == 0
    cluster = Cluster(empty_root)
    number = cluster.submit("-N", "2", "--requeue", "--wrap", "srun sleep 1000", "-o", "/dev/null")
    until(lambda: sum("sleep 1000" in process for process in processes_of(empty_root).values()) >= 2, "the job's start")
    # With the first node the job's script goes, and nobody but Slurm is left to requeue it.
    assert local_slurm("crash", empty_root, "n1").returncode == 0
    script = f"slurmstepd: [{number}.batch]"
    assert not [process for process in processes_of(empty_root).values() if process.startswith(script)]
    until(lambda: cluster.job(number)["JobState"] == "PENDING", "the requeue")
    assert cluster.run("sinfo", "-h", "-n", "n1", "-o", "%T").stdout.startswith("down")
    assert local_slurm("boot", empty_root, "n1").returncode == 0
    until(lambda: cluster.job(number)["JobState"] == "RUNNING", "the second start")
    assert cluster.job(number)["Restarts"] == "1"
    for wrong in ("n3", ""):
        done = local_slurm("crash", empty_root, wrong)
        assert (done.returncode, done.stdout.startswith("local_slurm: usage: ")) == (2, True)
