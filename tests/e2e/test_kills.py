"""Two ranks of the real command, killed at every named point: the run ends as one that nothing has disturbed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.launch import ROOT, environment
from trelm_ds.faults import POINTS


@pytest.mark.slow
@pytest.mark.parametrize("who", ["one", "all"])
def test_a_run_killed_at_every_point_ends_as_one_undisturbed(who: str, tiny_dataset: Path, tmp_path: Path) -> None:
    """One run for all points: killed, started again with the next point, and so on."""
    out = tmp_path / "kills.json"
    tool = [sys.executable, ROOT / "tools" / "kill_run.py", "--points", "--who", who]
    place = ["--data", tiny_dataset, "--work", tmp_path / "work", "--out", out]
    done = subprocess.run([*map(str, tool + place)], capture_output=True, text=True, env=environment(), timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert result["kills_by_point"] == dict.fromkeys(sorted(POINTS), 1)
    assert result["problems"] == []
