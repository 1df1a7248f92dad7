"""Tensor parallelism on a real Slurm: ranks of a node share a model, and the nodes have the same one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.launch import forked_ranks
from tests.slurm.local_cluster import Cluster
from tests.slurm.small_run import OBJECTIVE, SCRIPT, events, history, losses, on_cpu, site, write_config

pytestmark = [pytest.mark.slurm, pytest.mark.slow, on_cpu]
TWO_CORES = ("--gres=none", "--cpus-per-task=2")


def test_two_ranks_of_each_node_share_a_model(cluster: Cluster, tmp_path: Path, tiny_dataset: Path) -> None:
    config, out, log = write_config(tmp_path / "run.yaml", 12), tmp_path / "run", tmp_path / "log"
    values = site(tiny_dataset, out, config, TRELM_PROCS_PER_NODE="2", TRELM_HEALTH="1", TRELM_CHECK_GPUS="0")
    asked = ("-N", "2", *TWO_CORES, "-o", log, SCRIPT, "--model.tensor_parallel", "2")
    job = cluster.wait(cluster.submit(*asked, **values))
    assert (job["JobState"], job["NumNodes"], job["Restarts"]) == ("COMPLETED", "2", "0"), log.read_text()
    assert "2 x 2 processes" in log.read_text()
    assert events(out) == ["start", "end"]
    checked = {path.stem: json.loads(path.read_text()) for path in out.glob("slurm/job-*/health/*.ok")}
    assert set(checked) == {"n1", "n2"}
    assert all(node["bus_gbps_tensor_parallel"] > 0 for node in checked.values())
    manifest = json.loads((out / "checkpoints" / "step-00000012" / "manifest.json").read_text())
    assert (manifest["world_size"], manifest["tensor_parallel"]) == (4, 2)

    alone = tmp_path / "alone"
    whole = forked_ranks(
        2, "pretrain", "--config", OBJECTIVE, "--config", config, "--data", tiny_dataset, "--out", alone
    )
    assert whole.returncode == 0, whole.stderr
    assert len(losses(out)) == 12
    assert losses(out) == pytest.approx(losses(alone), rel=1e-5)


def test_a_degree_that_does_not_fit_the_nodes_is_refused_before_the_ranks_start(
    cluster: Cluster, tmp_path: Path, tiny_dataset: Path
) -> None:
    """As the files and arguments together have it."""
    out, log = tmp_path / "run", tmp_path / "log"
    config = write_config(tmp_path / "run.yaml")
    config.write_text(config.read_text().replace("model:\n", "model:\n  tensor_parallel: 3\n"))
    values = site(tiny_dataset, out, config, TRELM_PROCS_PER_NODE="2", TRELM_ARGS="--model.tensor_parallel 2")
    job = cluster.wait(cluster.submit(*TWO_CORES, "-o", log, SCRIPT, "--model.tensor_parallel=4", **values))
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "2:0", "0"), log.read_text()
    (line,) = log.read_text().splitlines()
    reason = "model.tensor_parallel: 4 does not divide the 2 processes of a node"
    assert line.startswith(f"pretrain_large: {reason}")
    assert events(out) == ["start", "end"]
    assert history(out)[-1]["text"].startswith(reason)
    job = cluster.wait(cluster.submit(*TWO_CORES, "-o", log, SCRIPT, **(values | {"TRELM_ARGS": ""})))
    assert job["ExitCode"] == "2:0"
    assert "model.tensor_parallel: 3 does not divide the 2 processes of a node" in log.read_text()
