"""`trelm submit` and `trelm status` with a real Slurm: two nodes on this host."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.local_cluster import REPO, Cluster, until
from tests.slurm.small_run import CPU_NODE, OBJECTIVE, events, last_step, on_cpu, write_config
from trelm_ds.cluster.snapshot import copy_code

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

Trelm = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the repository that a test may spoil."""
    copy_code(REPO, tmp_path / "tree")
    return tmp_path / "tree"


@pytest.fixture
def trelm(cluster: Cluster, tree: Path) -> Trelm:
    """Runs `trelm` from that copy."""

    def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        code = {"PYTHONPATH": f"{tree}:{tree}/kernels", "TRELM_PROCS_PER_NODE": "1", "TRELM_SITE": ""}
        # -P: Cluster.run works in the repository, which must not win over the copy.
        return cluster.run(sys.executable, "-P", "-m", "trelm_ds", *map(str, arguments), **code | variables)

    return run


@pytest.fixture
def job(tmp_path: Path, tiny_dataset: Path) -> list[object]:
    """Arguments of `trelm submit` for a run of 300 steps."""
    config = write_config(tmp_path / "run.yaml", max_steps=300)
    return ["--config", OBJECTIVE, "--config", config, "--data", tiny_dataset, "--out", tmp_path / "run"]


def seen(trelm: Trelm, run: Path) -> dict[str, object]:
    """`trelm status --json`."""
    done = trelm("status", "--json", run)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    return found


@on_cpu
def test_a_job_runs_from_its_snapshot_whatever_happens_to_the_repository(
    cluster: Cluster, trelm: Trelm, tree: Path, tmp_path: Path, job: list[object]
) -> None:
    run = tmp_path / "run"
    (tree / "slurm" / "site.env").write_text(
        f'TRELM_OUT={tmp_path}/elsewhere\nTRELM_MIN_DISK_GB=0\n: "${{TRELM_CHECK_GPUS:=${{SLURM_GPUS_ON_NODE:-0}}}}"\n'
    )
    done = trelm("submit", *job, "-N", 1, "--", *CPU_NODE, "--hold")
    assert (done.returncode, done.stderr) == (0, "")
    lines = dict(line.split(None, 1) for line in done.stdout.splitlines())
    number, snapshot = lines["job"], run / "submissions" / "001"
    assert lines["log"] == str(run / "slurm" / f"{number}.log")
    assert lines["snapshot"] == str(snapshot)
    assert lines["MLflow"] == "off (tracking.enabled is false)"
    assert cluster.job(number)["StdOut"] == lines["log"]
    found = seen(trelm, run)
    assert (found["state"], found["reason"], found["max_steps"]) == ("pending", "JobHeldUser", 300)

    again = trelm("submit", *job, "--", *CPU_NODE)
    assert again.returncode == 2
    assert f"job {number} of {run} is pending" in again.stderr
    assert again.stderr.count("\n") == 1
    assert [path.name for path in (run / "submissions").iterdir()] == ["001"]

    scripts = ("lib.sh", "pretrain.sh", "pretrain_job.sh", "pretrain_large.sh")
    for name in ("trelm_ds/__init__.py", *(f"slurm/{script}" for script in scripts)):
        (tree / name).write_text("exit(99)\n")
    (tmp_path / "run.yaml").unlink()
    cluster.run("scontrol", "release", number)
    until(
        lambda: last_step(run) > 0 or ((run / "slurm" / "history.jsonl").is_file() and "end" in events(run)), "a commit"
    )
    assert cluster.run("scontrol", "requeue", number).returncode == 0
    fields = cluster.wait(number)
    log = Path(lines["log"]).read_text()
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1"), log
    assert (events(run).count("start"), events(run)[-1]) == (2, "end")
    assert f"continuing {run} at step " in log
    assert last_step(run) == 300
    assert not (tmp_path / "elsewhere").exists()

    # `trelm` of the tree is spoilt by now; the snapshot's own is not.
    code = {"PYTHONPATH": f"{snapshot}/code:{snapshot}/code/kernels"}
    text = trelm("status", run, **code).stdout
    for line in (f"state       done, job {number} on n", "step        300 of 300 (100.0 %)", "restarts    1"):
        assert line in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gres=gpu:9"], "sbatch: "),
        (["--nodes=3"], "sbatch: "),
        (["-p", "nowhere"], "sbatch: invalid partition specified: nowhere"),
        (["--no-such-option"], "sbatch: unrecognized option '--no-such-option'"),
        (["--hold", "slurm/pretrain_base.sh"], "sbatch: option '--hold' doesn't allow an argument"),
    ],
)
def test_what_slurm_refuses_is_one_line(
    trelm: Trelm, tmp_path: Path, job: list[object], options: list[str], message: str
) -> None:
    dry = trelm("submit", *job, "--dry-run", "--", *options)
    assert dry.returncode == 2
    assert "#SBATCH" in dry.stdout
    assert not (tmp_path / "run").exists()
    done = trelm("submit", *job, "--", *options)
    assert (done.returncode, done.stdout) == (2, "")
    for errors in (dry.stderr, done.stderr):
        assert errors.startswith(f"trelm: error: {message}")
        assert errors.count("\n") == 1
    found = seen(trelm, tmp_path / "run")
    assert found["state"] == "not started"
    assert str(found["reason"]).startswith(message)


def test_dry_run_gives_slurms_answer_and_numbers_are_not_used_twice(
    cluster: Cluster, trelm: Trelm, tmp_path: Path, job: list[object]
) -> None:
    assert trelm("submit", *job, "--", "--gres=gpu:9").returncode == 2
    kinds = ("--mem-per-cpu=2G", "--gpus-per-node=2")  # which the script's --mem and --gres exclude
    done = trelm("submit", *job, "-N", 2, "--dry-run", "--", *kinds, SLURM_MEM_PER_CPU="1", SBATCH_MEM_PER_NODE="9G")
    assert done.returncode == 0, done.stderr
    assert "to start at" in done.stderr
    assert f"{tmp_path}/run/submissions/002/config.yaml" in done.stdout
    done = trelm("submit", *job, "--", "--hold", SBATCH_JOB_NAME="mine", SBATCH_TIMELIMIT="7")
    assert done.returncode == 0, done.stderr
    number = json.loads((tmp_path / "run" / "submissions" / "002" / "job.json").read_text())["job"]
    fields = cluster.job(number)
    assert (fields["JobName"], fields["TimeLimit"]) == ("mine", "00:07:00")
    cluster.run("scancel", number)
    found = seen(trelm, tmp_path / "run")
    assert (found["state"], found["reason"]) == ("stopped", "Slurm: CANCELLED")
    # By hand, without the variables, the file asks for the same.
    by_hand = cluster.submit("--hold", tmp_path / "run" / "submissions" / "002" / "job.sh")
    assert cluster.job(by_hand)["TimeLimit"] == "00:07:00"
    cluster.run("scancel", by_hand)
