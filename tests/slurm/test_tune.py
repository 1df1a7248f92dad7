"""slurm/tune.sh on a real Slurm: trials on one node, requeued in the middle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.slurm.local_cluster import Cluster, until
from tests.slurm.small_run import CPU_NODE, OBJECTIVE, on_cpu, write_config

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SCRIPT = Path("slurm/tune.sh")


@on_cpu
def test_a_requeued_job_goes_on(cluster: Cluster, tmp_path: Path, tiny_dataset: Path) -> None:
    out, log = tmp_path / "tune", tmp_path / "log"
    config = write_config(tmp_path / "run.yaml", 1000)
    site = {"TRELM_DATA": str(tiny_dataset), "TRELM_OUT": str(out), "TRELM_CONFIG": f"{OBJECTIVE} {config}"}
    site |= {"TRELM_PROCS_PER_NODE": "1", "TRELM_ARGS": "--trainer.seed 1"}
    job = cluster.submit(*CPU_NODE, "-o", log, SCRIPT, "--trials", "2", "--steps", "4", **site)
    first, second = (out / "trials" / name for name in ("zero1-64", "zero0-64"))
    until(lambda: (second / "log.txt").exists(), "the second trial")
    kept = (first / "result.json").read_text()
    assert cluster.run("scancel", "--batch", "--signal=USR1", job).returncode == 0
    ended = cluster.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), log.read_text()
    assert (first / "result.json").read_text() == kept
    assert json.loads((second / "result.json").read_text())["status"] == "ok"
    assert json.loads((out / "results.json").read_text())["best"] in ("zero0-64", "zero1-64")
    said = log.read_text()
    assert said.count("stopped by signal 10; the same command goes on") == 1
    assert said.count("tune: requeued near its time limit\n") == 1
    assert "use it: trelm pretrain --config" in said


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("TRELM_DATA", "nowhere", "no dataset at nowhere"),
        ("TRELM_CONFIG", "nowhere.yaml", "no configuration at nowhere.yaml"),
        ("TRELM_PROCS_PER_NODE", "eight", "TRELM_PROCS_PER_NODE must be a positive number"),
    ],
)
def test_wrong_value_is_one_line(cluster: Cluster, tmp_path: Path, variable: str, value: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    site = {"TRELM_DATA": str(tmp_path), "TRELM_OUT": str(tmp_path / "T"), variable: value}
    job = cluster.wait(cluster.submit(*CPU_NODE, "-o", tmp_path / "log", SCRIPT, **site))
    log = (tmp_path / "log").read_text()
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "2:0"), log
    assert log.startswith(f"tune: {message}")
    assert log.count("\n") == 1, log
