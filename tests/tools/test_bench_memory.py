"""The memory bank's benchmark runs end to end on a small bank; its times are not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_it_measures_calls_and_sizes(tmp_path: Path) -> None:
    options = "--rows 100 --size 8 --step-rows 10 --repeats 2 --rounds 1 --ranks 1 2"
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "bench" / "memory.py"), *options.split(), "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "memory.json").read_text())
    assert {"device", "versions", "date", "settings"} <= result.keys()
    assert [(row["dtype"], row["call"], row["ranks"]) for row in result["calls"]] == [
        (dtype, call, ranks) for dtype in ("fp32", "bf16") for call in ("lookup", "update") for ranks in (1, 2)
    ]
    assert all(row["ms"]["min"] > 0 for row in result["calls"])
    assert all((row["bytes_per_rank"] > 0) == (row["ranks"] > 1) for row in result["calls"])
    assert [row["bytes"] for row in result["sizes"]] == [3_100_000 * (2 * 8 * n + 8) for n in (4, 4, 2, 2)]
    assert "| lookup fp32 | 2 |" in done.stdout
