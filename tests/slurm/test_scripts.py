"""The job scripts: clean, accepted by Slurm, and quick to say what is wrong with a site's values."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.slurm.local_cluster import REPO, Cluster
from tests.slurm.small_run import SCRIPT, write_config

pytestmark = [pytest.mark.slurm]
SCRIPTS = sorted(path.relative_to(REPO) for path in [*REPO.glob("slurm/*.sh"), REPO / "tools" / "local_slurm.sh"])
JOBS = [path for path in SCRIPTS if "#SBATCH" in (REPO / path).read_text()]


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_scripts_are_clean(script: Path) -> None:
    subprocess.run(["bash", "-n", REPO / script], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", "-x", script], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.stdout == ""


def test_pretrain_scripts_differ_in_size_alone() -> None:
    bodies = set()
    for script in REPO.glob("slurm/pretrain_*.sh"):
        head, begin, body = script.read_text().partition("set -euo pipefail\n")
        if "#SBATCH" in head:
            size = script.stem.removeprefix("pretrain_")
            assert (REPO / "trelm_ds" / "recipes" / "sizes" / f"{size}.yaml").is_file()
            assert f"size={size}\n" in body
            bodies.add(begin + body.replace(f"size={size}\n", ""))
    assert len(bodies) == 1


@pytest.mark.parametrize("script", JOBS, ids=str)
def test_slurm_accepts_the_request(cluster: Cluster, script: Path) -> None:
    done = cluster.run("sbatch", "--test-only", script)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-N", "3"), "Batch job submission failed"),  # the cluster has two
        (("--gres=gpu:9",), "Requested node configuration is not available"),
        (("--gres=tpu:1",), "Invalid generic resource (gres) specification"),
        (("--partition=nowhere",), "invalid partition specified: nowhere"),
    ],
)
def test_slurm_refuses_what_it_has_not(cluster: Cluster, options: tuple[str, ...], message: str) -> None:
    done = cluster.run("sbatch", *options, SCRIPT)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("TRELM_DATA", "nowhere", "no dataset at nowhere"),
        ("TRELM_DATA", "slurm", "no manifest.json in slurm"),
        ("TRELM_OUT", "/dev/null/run", "cannot write into TRELM_OUT=/dev/null/run"),
        ("TRELM_MIN_DISK_GB", "999999999", "less than TRELM_MIN_DISK_GB=999999999 GB are free"),
        ("TRELM_MIN_DISK_GB", "much", "TRELM_MIN_DISK_GB must be a number"),
        ("TRELM_VENV", "nowhere", "no virtual environment at nowhere"),
        ("TRELM_CONFIG", "nowhere.yaml", "no configuration at nowhere.yaml"),
        ("TRELM_CONFIG", "trelm_ds/recipes/sizes/large.yaml nowhere.yaml", "no configuration at nowhere.yaml"),
        ("TRELM_CONFIG", " ", "no configuration: set TRELM_CONFIG"),
        ("TRELM_HOME", "/usr", "no trelm_ds in /usr"),
        ("TRELM_SITE", "nowhere.env", "no site file at nowhere.env"),
        ("TRELM_PROCS_PER_NODE", "eight", "TRELM_PROCS_PER_NODE must be a positive number"),
        ("TRELM_MAX_RESTARTS", "-1", "TRELM_MAX_RESTARTS must be a whole number"),
        ("TRELM_REQUEUE", "yes", "TRELM_REQUEUE must be 0 or 1"),
        ("TRELM_MODULES", "cuda", "there is no 'module' command here"),
        ("TRELM_CONTAINER", "image.sqsh", "srun here has no --container-image"),
    ],
)
def test_wrong_site_value_is_one_line(
    cluster: Cluster, tmp_path: Path, variable: str, value: str, message: str
) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    site = {"TRELM_DATA": str(tmp_path), "TRELM_OUT": str(tmp_path / "run"), variable: value}
    site = {"TRELM_CONFIG": str(write_config(tmp_path / "run.yaml", 1))} | site
    job = cluster.wait(cluster.submit("-o", tmp_path / "log", SCRIPT, **site))
    log = (tmp_path / "log").read_text()
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "2:0", "0"), log
    assert message in log.splitlines()[-1]
    assert log.splitlines()[-1].startswith("pretrain_large: ")
    assert len(log.splitlines()) <= 2, log  # mkdir has its say, too


def test_site_values_come_from_the_environment_then_the_file_then_defaults(cluster: Cluster, tmp_path: Path) -> None:
    site = tmp_path / "site.env"
    site.write_text(': "${TRELM_DATA:=from-the-file}"\n: "${TRELM_VENV:=from-the-file}"\n')
    log = tmp_path / "log"
    values = {"TRELM_SITE": str(site), "TRELM_OUT": str(tmp_path / "run")}
    cluster.wait(cluster.submit("-o", log, SCRIPT, **values))
    assert "no dataset at from-the-file" in log.read_text()
    cluster.wait(cluster.submit("-o", log, SCRIPT, **values, TRELM_DATA="from-the-environment"))
    assert "no dataset at from-the-environment" in log.read_text()


def test_the_example_lists_every_variable_with_its_default() -> None:
    example = (REPO / "slurm" / "site.env.example").read_text()
    read = (REPO / "slurm" / "lib.sh").read_text()
    defaults = [line.strip().split("=", 1) for line in read.splitlines() if line.strip().startswith("TRELM_")]
    for name, default in defaults:
        if default.startswith(f"${{{name}:-"):
            value = default.removeprefix(f"${{{name}:-")[:-1]
            assert f'"${{{name}:={value}}}"' in example, name


def test_the_history_needs_no_other_process(tmp_path: Path) -> None:
    """Where a node is lost, Slurm signals what the script has started: here nothing can be started."""
    state, checkpoints = tmp_path / "slurm", tmp_path / "checkpoints"
    state.mkdir()
    checkpoints.mkdir()
    values = {"SLURM_JOB_ID": "3", "SLURM_JOB_NODELIST": "n[1-2]", "TRELM_OUT": str(tmp_path), "TZ": "America/New_York"}
    script = f"set -euo pipefail; source {REPO}/slurm/pretrain_job.sh; state={state} log=/log; PATH=/none; "
    latest = checkpoints / "latest.json"
    for content in (None, "", '{"name": "step-00000012", "step": 12, "files": 3}\n'):
        if content is not None:
            latest.write_text(content)
        done = subprocess.run(
            ["bash", "-c", script + "note end 'a \"b\"' 143"], env=os.environ | values, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in (state / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 0, 12]
    now = datetime.now(UTC)
    assert abs((now - datetime.fromisoformat(lines[-1].pop("time"))).total_seconds()) < 600
    rest = {"restart": 0, "nodes": "n[1-2]", "log": "/log", "text": "a b", "code": 143}
    assert lines[-1] == {"job": "3", "event": "end", "step": 12} | rest


def test_outside_of_slurm_it_says_how_to_start_it() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "SLURM_JOB_ID"}
    done = subprocess.run([REPO / SCRIPT], env=environment, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "start it with 'sbatch" in done.stderr
