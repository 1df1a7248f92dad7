"""slurm/pretrain_large.sh on a real Slurm: two nodes on this host, CPU processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from tests.slurm.local_cluster import REPO, Cluster, local_slurm, processes_of, until

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SCRIPT = Path("slurm/pretrain_large.sh")
OBJECTIVE = "trelm_ds/recipes/mlm.yaml"
CPU_NODE = ("--gres=none", "--cpus-per-task=1")
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="the local cluster hands out made-up GPU numbers")


def write_config(path: Path, max_steps: int) -> Path:
    """A model that takes milliseconds per step."""
    path.write_text(
        yaml.safe_dump(
            {
                "model": {
                    "hidden_size": 32,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "intermediate_size": 64,
                    "max_position_embeddings": 64,
                },
                "optimizer": {"warmup_steps": 1},
                "trainer": {
                    "max_steps": max_steps,
                    "global_batch_size": 8,
                    "micro_batch_tokens": 64,
                    "precision": "fp32",
                    "ds_config": "ds_configs/zero1.json",
                    "checkpoint_every": 2,
                },
                "tracking": {"enabled": False},
            }
        )
    )
    return path


def last_step(out: Path) -> int:
    """The step of the last committed checkpoint, 0 before the first."""
    try:
        return json.loads((out / "checkpoints" / "latest.json").read_text())["step"]
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("script", ["slurm/pretrain_large.sh", "tools/local_slurm.sh"])
def test_scripts_are_clean(script: str) -> None:
    subprocess.run(["bash", "-n", REPO / script], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", REPO / script], capture_output=True, text=True, check=False)
    assert done.stdout == ""


@pytest.mark.parametrize(("nodes", "fits"), [(1, True), (2, True), (3, False)])
def test_slurm_accepts_the_request(cluster: Cluster, nodes: int, fits: bool) -> None:
    """8 GPUs per node; the cluster has two nodes."""
    done = cluster.run("sbatch", "--test-only", "-N", str(nodes), SCRIPT)
    assert (done.returncode == 0) is fits, done.stderr


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("TRELM_DATA", "nowhere", "no dataset at nowhere"),
        ("TRELM_DATA", "slurm", "no manifest.json in slurm"),
        ("TRELM_VENV", "nowhere", "no virtual environment at nowhere"),
        ("TRELM_CONFIG", "nowhere.yaml", "no configuration at nowhere.yaml"),
        ("TRELM_CONFIG", "trelm_ds/recipes/sizes/large.yaml nowhere.yaml", "no configuration at nowhere.yaml"),
        ("TRELM_CONFIG", " ", "no configuration: set TRELM_CONFIG"),
        ("TRELM_HOME", "/usr", "no trelm_ds in /usr"),
        ("TRELM_PROCS_PER_NODE", "eight", "TRELM_PROCS_PER_NODE must be a positive number"),
        ("TRELM_MODULES", "cuda", "there is no 'module' command here"),
    ],
)
def test_wrong_site_value_is_one_line(
    cluster: Cluster, tmp_path: Path, variable: str, value: str, message: str
) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    site = {"TRELM_DATA": str(tmp_path), "TRELM_CONFIG": str(write_config(tmp_path / "run.yaml", 1)), variable: value}
    job = cluster.wait(cluster.submit("-o", tmp_path / "log", SCRIPT, **site))
    log = (tmp_path / "log").read_text()
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "2:0"), log
    assert message in log
    assert log.startswith("pretrain_large: ")
    assert log.count("\n") == 1, log


def test_outside_of_slurm_it_says_how_to_start_it() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "SLURM_JOB_ID"}
    done = subprocess.run([REPO / SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "start it with 'sbatch" in done.stderr


@on_cpu
@pytest.mark.parametrize(
    ("nodes", "options", "site"),
    [
        (1, ("--gres=gpu:2", "--cpus-per-task=2"), {}),  # as many processes as GPUs
        (2, CPU_NODE, {"TRELM_PROCS_PER_NODE": "1"}),
    ],
)
def test_two_processes_train_to_the_end(
    cluster: Cluster, tmp_path: Path, tiny_dataset: Path, nodes: int, options: tuple[str, ...], site: dict[str, str]
) -> None:
    config, out = write_config(tmp_path / "run.yaml", max_steps=6), tmp_path / "run"
    site = site | {"TRELM_DATA": str(tiny_dataset), "TRELM_OUT": str(out), "TRELM_CONFIG": f"{OBJECTIVE} {config}"}
    site["TRELM_ARGS"] = "--trainer.max_steps 4"  # overrides the file
    job = cluster.wait(cluster.submit("-N", str(nodes), *options, "-o", tmp_path / "log", SCRIPT, **site))
    log = (tmp_path / "log").read_text()
    assert (job["JobState"], job["NumNodes"]) == ("COMPLETED", str(nodes)), log
    assert f"{nodes} x {2 // nodes} processes" in log
    assert last_step(out) == 4, log


@on_cpu
def test_signal_commits_a_checkpoint_and_the_next_job_continues(
    cluster: Cluster, tmp_path: Path, tiny_dataset: Path
) -> None:
    """What happens at the time limit: `--signal=B:USR1@180` signals the batch shell just like `scancel -b`."""
    config, out = write_config(tmp_path / "run.yaml", max_steps=1_000_000), tmp_path / "run"
    site = {"TRELM_DATA": str(tiny_dataset), "TRELM_OUT": str(out), "TRELM_CONFIG": f"{OBJECTIVE} {config}"}
    options = ("-N", "2", *CPU_NODE, "-o", tmp_path / "log", SCRIPT, "--trainer.checkpoint_every", "20")
    reached = 0
    for _ in range(2):
        number = cluster.submit(*options, **site, TRELM_PROCS_PER_NODE="1")
        until(
            lambda before=reached, number=number: (
                last_step(out) != before or cluster.job(number)["JobState"] not in {"PENDING", "RUNNING"}
            ),
            "a checkpoint",
        )
        assert cluster.run("scancel", "--batch", "--signal=USR1", number).returncode == 0
        job = cluster.wait(number)
        log = (tmp_path / "log").read_text()
        assert (job["JobState"], job["ExitCode"]) == ("FAILED", f"{128 + signal.SIGUSR1}:0"), log
        assert "pretrain_large: stopped, last checkpoint: {" in log
        assert last_step(out) > reached, log
        reached = last_step(out)
    assert reached >= 21  # the second job went on where the first had stopped; from the start it would have written 20


def test_local_slurm_starts_once_and_afresh_after_a_crash(empty_root: Path) -> None:
    up = local_slurm("up", empty_root)
    assert (up.returncode, up.stdout) == (0, f"export SLURM_CONF={empty_root}/slurm.conf\n")
    daemons = {name: (empty_root / "run" / f"{name}.pid").read_text() for name in ("munged", "slurmctld", "n1", "n2")}
    assert local_slurm("up", empty_root).stdout == up.stdout
    assert daemons == {name: (empty_root / "run" / f"{name}.pid").read_text() for name in daemons}
    assert local_slurm("status", empty_root).returncode == 0

    cluster = Cluster(empty_root)
    cluster.submit("--wrap", "srun sleep 1000", "-o", "/dev/null")
    until(lambda: any("sleep 1000" in process for process in processes_of(empty_root)), "the job's start")
    os.kill(int(daemons["slurmctld"]), signal.SIGKILL)
    until(lambda: local_slurm("status", empty_root).returncode == 1, "the end of slurmctld")
    assert local_slurm("up", empty_root).returncode == 0
    assert not any("sleep 1000" in process for process in processes_of(empty_root))
    assert cluster.wait(cluster.submit("--wrap", "srun true", "-o", "/dev/null"))["JobState"] == "COMPLETED"
    # The fixture takes the cluster down and looks for processes left behind.


def test_local_slurm_touches_no_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    for command in ("down", "up"):
        done = local_slurm(command, tmp_path)
        assert done.returncode == 2
        assert done.stdout.startswith("local_slurm: ")
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
