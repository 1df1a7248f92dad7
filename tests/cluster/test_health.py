"""The check of nodes, with CPU processes that meet over gloo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.e2e.launch import environment
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("TRELM_MAX_CLOCK_SKEW_S", "0", "clock is off by "),  # no two processes look at the same nanosecond
        ("TRELM_MIN_BUS_GBPS", "1000000", "GPUs sum at "),
        ("TRELM_MIN_DISK_GB", "1e12", "GB free, TRELM_MIN_DISK_GB is 1e+12"),
    ],
)
def test_a_bad_node_says_why(tmp_path: Path, variable: str, value: str, reason: str) -> None:
    done = check(tmp_path / "answers", **{variable: value})
    assert done.returncode == 1, done.stderr
    assert reason in (tmp_path / "answers" / "n7.bad").read_text()
    assert not (tmp_path / "answers" / "n7.ok").exists()
    assert "Traceback" not in done.stderr


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
