"""The check of nodes, with CPU processes that meet over gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.distributed import run_distributed_test
from tests.e2e.launch import environment
from trelm_ds.cluster import health
from trelm_ds.cluster.health import BadNodeError, check_gpu, check_node


def check(answers: Path, *options: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Two processes on a node called n7."""
    answers.mkdir()
    own = ["--answers", str(answers), "--gpus", "0", "--out", str(answers.parent), *options]
    command = [sys.executable, "-m", "trelm_ds.cluster.health", *own, "--", "--standalone", "--nproc-per-node", "2"]
    changes = {"SLURMD_NODENAME": "n7", "CUDA_VISIBLE_DEVICES": ""} | changes
    return subprocess.run(
        command, env=environment() | changes, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.slow
def test_a_sound_node_says_how_fast_it_sums(tmp_path: Path) -> None:
    done = check(tmp_path / "answers")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "answers").iterdir()} == {"n7.here", "n7.ok"}
    found = json.loads((tmp_path / "answers" / "n7.ok").read_text())
    assert found["bus_gbps_within"] > 0
    assert found["bus_gbps_all"] > 0
    assert abs(found["clock_skew_s"]) < 5
    assert "bus_gbps_tensor_parallel" not in found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "value", "options", "reason"),
    [
        ("TRELM_MAX_CLOCK_SKEW_S", "0", (), "clock is off by "),  # no two processes look at the same nanosecond
        ("TRELM_MIN_BUS_GBPS", "1000000", (), "GPUs sum at "),
        ("TRELM_MIN_BUS_GBPS", "1000000", ("--tensor-parallel", "2"), "GPUs 0-1 at "),
        ("TRELM_MIN_DISK_GB", "1e12", (), "GB free, TRELM_MIN_DISK_GB is 1e+12"),
    ],
)
def test_a_bad_node_says_why(tmp_path: Path, variable: str, value: str, options: tuple[str, ...], reason: str) -> None:
    done = check(tmp_path / "answers", *options, **{variable: value})
    assert done.returncode == 1, done.stderr
    assert reason in (tmp_path / "answers" / "n7.bad").read_text()
    assert not (tmp_path / "answers" / "n7.ok").exists()
    assert "Traceback" not in done.stderr


def with_bad_links(answers: Path, speeds: dict[int, float], fails: int | None) -> str:
    """Checks this rank, of four on each node; groups of two sum at the speed of their slower rank, or fail."""
    rank, really = int(os.environ["RANK"]), health.bus_bandwidth
    os.environ |= {"LOCAL_RANK": str(rank % 4), "TRELM_MIN_BUS_GBPS": "5"}

    def measured(device: torch.device, group: dist.ProcessGroup | None) -> float:
        ranks = dist.get_process_group_ranks(group)
        assert really(device, group) > 0
        if fails in ranks and len(ranks) == 2:
            raise RuntimeError("a cable is\nloose")
        return min(speeds.get(one, 9.0) for one in ranks) if len(ranks) == 2 else 9.0

    health.bus_bandwidth, health._CPU_BYTES = measured, 4096
    try:
        health.check_process(f"n{rank // 4}", answers, degree=2)
    except BadNodeError as error:
        return str(error)
    except RuntimeError:
        return "another process is gone"
    return ""


@pytest.mark.slow
def test_a_slow_link_within_a_tensor_parallel_group_is_named(tmp_path: Path) -> None:
    """By all processes of the node alike, whichever is the first to answer; the other node is sound."""
    said = run_distributed_test(with_bad_links, 8, tmp_path, {7: 3.5}, None)
    slow = "GPUs 2-3 at 3.5 GB/s sum within tensor-parallel groups, TRELM_MIN_BUS_GBPS is 5"
    assert said == [""] * 4 + [slow] * 4
    assert {path.name for path in tmp_path.iterdir()} == {"n0.ok"}
    assert json.loads((tmp_path / "n0.ok").read_text())["bus_gbps_tensor_parallel"] == 9.0


def test_a_group_that_cannot_sum_is_named(tmp_path: Path) -> None:
    said = run_distributed_test(with_bad_links, 4, tmp_path, {}, 3)
    failed = "GPUs 2-3 fail to sum as a tensor-parallel group: a cable is loose"
    assert said == ["another process is gone"] * 2 + [failed] * 2


def test_a_node_without_the_run_folder(tmp_path: Path) -> None:
    done = check(tmp_path / "answers", "--out", str(tmp_path / "nowhere"))
    assert done.returncode == 1
    assert [path.name for path in (tmp_path / "answers").iterdir()] == ["n7.bad"]
    assert "cannot write into" in done.stderr


def test_gpus_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(BadNodeError, match=r"\d+ of 99 GPUs are visible"):
        check_node(99, [tmp_path])
    with pytest.raises(BadNodeError, match=r"cannot write into .*nowhere: No such file or directory"):
        check_node(0, [tmp_path / "nowhere"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_multiplies_and_is_free() -> None:
    device = torch.device("cuda", 0)
    check_gpu(device)
    held = torch.empty(int(0.2 * torch.cuda.mem_get_info(device)[1]), dtype=torch.uint8, device=device)
    with pytest.raises(BadNodeError, match="is in use"):
        check_gpu(device)
    del held
