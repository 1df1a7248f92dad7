"""Pre-training jobs on a real Slurm: two nodes on this host, CPU processes, gloo."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.e2e.launch import forked_ranks
from tests.slurm.local_cluster import REPO, Cluster, local_slurm, processes_of, until
from tests.slurm.small_run import (
    CPU_NODE,
    OBJECTIVE,
    SCRIPT,
    events,
    hashes,
    history,
    last_step,
    left_by_an_allocation,
    losses,
    on_cpu,
    site,
    unhurried,
    write_config,
)

# What a site may set for all jobs: not for the variables that the script hands to its own steps.
EXPORTED = "--export=PATH,HOME,TRELM_DATA,TRELM_OUT,TRELM_CONFIG,TRELM_ARGS,TRELM_PROCS_PER_NODE,TRELM_VENV," + (
    "TRELM_HEALTH,TRELM_CHECK_GPUS,SLURM_TMPDIR"
)
pytestmark = [pytest.mark.slurm, pytest.mark.slow, on_cpu]


def test_two_nodes_train_as_one(cluster: Cluster, tmp_path: Path, tiny_dataset: Path) -> None:
    """With the check of nodes, and once in a container, whose runtime is a stand-in that only starts the command.

    Submitted from within an interactive job, whose variables are not theirs.
    """
    config, tools = write_config(tmp_path / "run.yaml", 12, loader_workers=1), tmp_path / "tools"
    tools.mkdir()
    (tools / "apptainer").write_text(
        f'#!/bin/bash\necho "$@" >>{tools}/called\nwhile [[ $1 != *.sif ]]; do shift; done\n"${{@:2}}"\n'
    )
    (tools / "apptainer").chmod(0o755)
    (image := tools / "image.sif").touch()
    contained = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "TRELM_CONTAINER": str(image),
        "TRELM_CONTAINER_RUNTIME": "apptainer",
        "TRELM_CONTAINER_MOUNTS": "/data:/data",
        "TRELM_CONTAINER_PYTHON": sys.executable,
        "TRELM_VENV": "nowhere",
    }
    found = {}
    for nodes, options, more in (
        (1, ("--gres=gpu:2", "--cpus-per-task=2"), contained | {"TRELM_PROCS_PER_NODE": ""}),  # one for each GPU
        (2, (*CPU_NODE, EXPORTED), {"TRELM_ARGS": "--trainer.log_every\n1"}),
    ):
        out, log = tmp_path / f"run-{nodes}", tmp_path / f"log-{nodes}"
        values = site(tiny_dataset, out, config, TRELM_HEALTH="1", TRELM_CHECK_GPUS="0", **more)
        values |= left_by_an_allocation() | {"SLURM_TMPDIR": str(local := tmp_path / f"local-{nodes}")}
        local.mkdir()
        job = cluster.wait(cluster.submit("-N", str(nodes), *options, "-o", log, SCRIPT, **values))
        assert (job["JobState"], job["NumNodes"], job["Restarts"]) == ("COMPLETED", str(nodes), "0"), log.read_text()
        assert f"{nodes} x {2 // nodes} processes" in log.read_text()
        answers = {path.stem: json.loads(path.read_text()) for path in out.glob("slurm/job-*/health/*.ok")}
        assert len(answers) == nodes
        assert all(answer["bus_gbps_all"] > 0 for answer in answers.values())
        assert events(out) == ["start", "end"]
        found[nodes] = losses(out)
        # What kernels compile to is kept on each node, apart for every process.
        cached = {str(path.relative_to(local)) for path in local.glob("*/*/*")}
        ranks = ("n1/rank-0", "n2/rank-0") if nodes == 2 else (f"{job['NodeList']}/rank-{i}" for i in (0, 1))
        assert cached == {f"trelm-cache-{os.getuid()}/{rank}" for rank in ranks}
    assert len(found[1]) == 12
    assert found[1] == pytest.approx(found[2], rel=1e-6)
    called = (tools / "called").read_text().splitlines()
    start = f"exec --nv --bind {REPO}:{REPO},/data:/data --pwd {REPO} {image} {sys.executable} -m "
    modules = ["trelm_ds", "trelm_ds.cluster.health", "trelm_ds.cluster.launcher"]  # the first reads the settings
    assert [line.removeprefix(start).split()[0] for line in called] == modules


def test_a_job_survives_what_clusters_do(empty_root: Path, tmp_path: Path, tiny_dataset: Path) -> None:
    """Time limit, a killed worker, a lost node; in the end the weights are those of an undisturbed run.

    `scancel --signal` takes the way of the time limit, and is below.
    """
    assert local_slurm("up", empty_root).returncode == 0
    cluster, out, log = Cluster(empty_root), tmp_path / "run", tmp_path / "log"
    config = write_config(tmp_path / "run.yaml")

    def requeued_and_on(what: str, step: int) -> None:
        """Waits until the job has started again after a checkpoint beyond `step`, and made further ones."""
        starts = events(out).count("start")
        until(lambda: events(out).count("start") > starts, f"a new start after {what}")
        begun = history(out)[-1]["step"]
        assert begun >= step, log.read_text()
        until(lambda: last_step(out) > begun, f"checkpoints after {what}")

    options = ("-N", "2", *CPU_NODE, "--time=60", "--signal=B:USR1@120", "-o", log, SCRIPT)
    values = site(tiny_dataset, out, config, TRELM_MAX_STALLS="9", **unhurried(tmp_path))
    number = cluster.submit(*options, **values)
    until(lambda: last_step(out) > 0, "a checkpoint")
    # Slurm looks at its clocks twice a minute, so it may signal the next time.
    cluster.run("scontrol", "update", f"jobid={number}", "timelimit=3")
    requeued_and_on("the time limit", last_step(out))
    assert "SIGUSR1" in [line["text"] for line in history(out)]
    cluster.run("scontrol", "update", f"jobid={number}", "timelimit=60")

    step = last_step(out)
    ranks = [pid for pid, command in processes_of(empty_root).items() if " -u -m trelm_ds pretrain " in command]
    assert len(ranks) == 2
    os.kill(ranks[0], signal.SIGKILL)
    requeued_and_on("a killed worker", step)

    step = last_step(out)
    assert local_slurm("crash", empty_root, "n2").returncode == 0
    until(lambda: cluster.job(number)["JobState"] == "PENDING", "the requeue")
    assert local_slurm("boot", empty_root, "n2").returncode == 0
    requeued_and_on("a lost node", step)

    (out / "stop").touch()
    job = cluster.wait(number)
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "130:0"), log.read_text()
    assert int(job["Restarts"]) >= 3
    assert history(out)[-1]["text"] == "stopped by its stop file"

    undisturbed, steps = tmp_path / "undisturbed", last_step(out)
    arguments = ("--config", OBJECTIVE, "--config", config, "--data", tiny_dataset, "--out", undisturbed)
    repeated = forked_ranks(2, "pretrain", *arguments, "--trainer.max_steps", steps)
    assert repeated.returncode == 0, repeated.stderr
    assert hashes(out, steps) == hashes(undisturbed, steps)
    assert losses(out) == losses(undisturbed)


def test_starts_without_progress_come_to_an_end(cluster: Cluster, tmp_path: Path, tiny_dataset: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    values = site(tiny_dataset, out, write_config(tmp_path / "run.yaml"), TRELM_KILL_AT="step-read:3")
    job = cluster.wait(cluster.submit(*CPU_NODE, "-o", log, SCRIPT, **values))
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "2:0", "3"), log.read_text()
    assert events(out) == ["start", "requeue"] * 3 + ["stalled"]
    assert "exit codes 137" in history(out)[1]["text"]
    reason = "pretrain_large: 3 starts in a row ended without a checkpoint after step 0: fix the cause"
    assert log.read_text().splitlines()[-1].startswith(reason)


@pytest.mark.parametrize(
    ("more", "code", "text"),
    [
        ({"TRELM_ARGS": "--trainer.global_batch_size 0"}, 2, "not requeued: a restart would not fix this mistake"),
        ({"TRELM_KILL_AT": "step-read:3", "TRELM_REQUEUE": "0"}, 137, "not requeued (TRELM_REQUEUE=0): exit codes 137"),
    ],
)
def test_ends_without_requeue(
    cluster: Cluster, tmp_path: Path, tiny_dataset: Path, more: dict[str, str], code: int, text: str
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    values = site(tiny_dataset, out, write_config(tmp_path / "run.yaml"), **more)
    job = cluster.wait(cluster.submit(*CPU_NODE, "-o", log, SCRIPT, **values))
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", f"{code}:0", "0"), log.read_text()
    assert events(out) == ["start", "end"]
    assert history(out)[-1]["text"].startswith(text)
    assert "Traceback" not in log.read_text()


def test_cancelled_means_ended(cluster: Cluster, tmp_path: Path, tiny_dataset: Path) -> None:
    """SIGTERM, as of scancel and of preemption, where Slurm requeues by itself if it is set up to."""
    out, log = tmp_path / "run", tmp_path / "log"
    config = write_config(tmp_path / "run.yaml", loader_workers=1)
    number = cluster.submit(*CPU_NODE, "-o", log, SCRIPT, **site(tiny_dataset, out, config))
    until(lambda: last_step(out) > 0, "a checkpoint")
    assert cluster.run("scancel", number).returncode == 0
    job = cluster.wait(number)
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0"), log.read_text()
    until(lambda: not [command for command in processes_of(cluster.root).values() if " trelm_ds" in command], "its end")
    assert "stopped by signal 15" in log.read_text()
    # The script itself may or may not have had time for it before Slurm's KillWait ended.
    assert events(out) == ["start"] or history(out)[-1]["text"].startswith("ended by Slurm: C")


def test_a_second_job_on_the_run_folder_leaves_the_first_alone(
    cluster: Cluster, tmp_path: Path, tiny_dataset: Path
) -> None:
    out, config = tmp_path / "run", write_config(tmp_path / "run.yaml")
    values = site(tiny_dataset, out, config, **unhurried(tmp_path))
    first = cluster.submit(*CPU_NODE, "-o", tmp_path / "log", SCRIPT, **values)
    until(lambda: last_step(out) > 0, "a checkpoint")
    job = cluster.wait(cluster.submit(*CPU_NODE, "-o", tmp_path / "log-2", SCRIPT, **values))
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "2:0")
    assert "is in use by another process" in (tmp_path / "log-2").read_text()
    assert cluster.run("scancel", "--batch", "--signal=USR1", first).returncode == 0
    until(
        lambda: cluster.job(first)["Restarts"] == "1" and last_step(out) > history(out)[-1]["step"], "its second start"
    )
    (out / "stop").touch()
    assert cluster.wait(first)["ExitCode"] == "130:0"


def test_where_only_a_bad_node_fits_the_job_ends(cluster: Cluster, tmp_path: Path, tiny_dataset: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    values = site(tiny_dataset, out, write_config(tmp_path / "run.yaml"), TRELM_HEALTH="1")
    options = ("--gres=gpu:2", "--cpus-per-task=1", "--nodelist=n1")
    job = cluster.wait(cluster.submit(*options, "-o", log, SCRIPT, **values))
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "2:0", "0"), log.read_text()
    assert events(out) == ["start", "stalled"]
    assert history(out)[-1]["text"].endswith("; --nodelist asks for n1: repair them or leave them out")


def test_bad_nodes_are_left(cluster: Cluster, tmp_path: Path, tiny_dataset: Path) -> None:
    """Its made-up GPUs cannot be seen by anyone: the job tries the other node, then says so."""
    out, log = tmp_path / "run", tmp_path / "log"
    values = site(tiny_dataset, out, write_config(tmp_path / "run.yaml"), TRELM_HEALTH="1")
    values |= {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_PORT": "1"}  # as a shell may have them left
    job = cluster.wait(cluster.submit("--gres=gpu:2", "--cpus-per-task=1", "-o", log, SCRIPT, **values))
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "2:0", "1"), log.read_text()
    first, requeue, second, end = history(out)
    assert {first["nodes"], second["nodes"]} == {"n1", "n2"}
    assert requeue["text"] == f"bad nodes: {first['nodes']}: 0 of 2 GPUs are visible"
    assert (end["event"], end["text"].split(";")[0]) == ("stalled", f"{second['nodes']}: 0 of 2 GPUs are visible")
    # A node that passes later is no bad node any more.
    values |= {"TRELM_CHECK_GPUS": "0", "TRELM_ARGS": "--trainer.max_steps 1"}
    job = cluster.wait(cluster.submit("--nodelist=n1", *CPU_NODE, "-o", log, SCRIPT, **values))
    assert job["JobState"] == "COMPLETED", log.read_text()
    assert (out / "slurm" / "bad_nodes").read_text() == "n2\n"
