"""Two ranks of the real command, killed at every named point: the run ends as one that nothing has disturbed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import pytest

from tests.e2e.launch import environment
from tests.forked import ROOT, run
from tools.kill_run import main
from trelm_ds.faults import POINTS


def forked(ranks: int, arguments: list[str], kill_at: str, log: TextIO) -> int:
    done = run(arguments, ranks, timeout=900, TRELM_KILL_AT=kill_at)
    log.write(done.stdout + done.stderr)
    return done.returncode


@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "settings"),
    [
        ("one", []),
        ("all", ["--routing.compact", "true"]),
        ("one", ["--model.tensor_parallel", "2"]),
    ],
)
def test_a_run_killed_at_every_point_ends_as_one_undisturbed(
    who: str, settings: list[str], tiny_dataset: Path, tmp_path: Path
) -> None:
    """One run for all points: killed, started again with the next point, and so on."""
    place = ["--data", str(tiny_dataset), "--work", str(tmp_path / "work"), *settings]
    result = main(["--points", "--who", who, *place, "--trainer.max_steps", "16"], forked)
    assert result["kills_by_point"] == dict.fromkeys(sorted(POINTS), 1)
    assert result["problems"] == []


@pytest.mark.slow
def test_the_same_under_torchrun_at_a_drawn_point(tiny_dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "kills.json"
    tool = [sys.executable, ROOT / "tools" / "kill_run.py", "--kills", 1, "--who", "both", "--seed", 3]
    place = ["--data", tiny_dataset, "--work", tmp_path / "work", "--out", out]
    done = subprocess.run([*map(str, tool + place)], capture_output=True, text=True, env=environment(), timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert result["kills"] == 1
    assert result["problems"] == []
