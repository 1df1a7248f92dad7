"""Kernels compiled for every GPU that they are to run on, by tools/bench/kernels_aot.py."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "bench" / "kernels_aot.py"
MEASURED = ROOT / "docs" / "benchmarks" / "kernels_aot.json"
LIMITS = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB


def run(cache: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, TOOL, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800)


def check(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert 0 <= row["shared_memory"] <= row["shared_memory_limit"] == LIMITS[row["sm"]] * 1024, row
        assert row["spilled"] <= (32 if row["sm"] in (75, 86, 89) else 0) or row["dtype"] == "fp16", row
        assert (row["sm"], row["dtype"]) != (75, "bf16")


def test_the_kernel_with_most_shared_memory_fits_every_gpu(tmp_path: Path) -> None:
    """It takes twice as much in fp32 as in bf16; all kernels are a slow test."""
    done = run(tmp_path, "--kernels", "weight gradient, bias, fp32", "--out", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["kernels"]
    assert [row["sm"] for row in rows] == [*LIMITS]
    assert all(row["shared_memory"] > 0 for row in rows)
    check(rows)
    most = {row["sm"]: row["shared_memory"] for row in rows}
    for row in json.loads(MEASURED.read_text())["kernels"]:
        assert row["shared_memory"] <= most[row["sm"]], f"{row['kernel']} takes more: compile that here"


def test_a_kernel_that_fits_nowhere_is_named(tmp_path: Path) -> None:
    """The same tool with blocks that are too large for a T4."""
    large = tmp_path / "large.py"
    large.write_text(
        f"import runpy, trelm_kernels.weight_gradient as w\nw.BLOCK_S, w.BLOCK_D, w.BLOCK_T = 16, 16, 1024\n"
        f"runpy.run_path({str(TOOL)!r}, run_name='__main__')\n"
    )
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    command = [sys.executable, large, "--kernels", "^weight gradient, fp32", "--sm", "75"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 1
    assert re.search(r"weight gradient, fp32, on sm_75: takes [\d,]+ bytes of shared memory of 65,536", done.stderr)


def test_the_table_in_the_docs_is_what_was_measured() -> None:
    rows = json.loads(MEASURED.read_text())["kernels"]
    assert len(rows) == len(LIMITS) * (3 * 8 + 1) - 8  # no bf16 on sm_75
    check(rows)
    table = (ROOT / "docs" / "routing.md").read_text().split("<!-- kernels-aot -->")[1].split("<!--")[0]
    cells = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:] for line in table.strip().splitlines()}
    for name in {row["kernel"] for row in rows}:
        assert len(cells[name]) == len(LIMITS)
        largest = max(row["shared_memory"] for row in rows if (row["kernel"], row["sm"]) == (name, 75))
        assert cells[name][0].split("; ")[0].endswith(f", {largest / 1024:.3g}")


@pytest.mark.slow
def test_every_kernel_fits_the_gpus_that_clusters_have(tmp_path: Path) -> None:
    """A100 and H100; the tool itself goes through all."""
    done = run(tmp_path, "--sm", "80", "90", "--out", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    rows, before = (json.loads(path.read_text()) for path in (tmp_path / "out.json", MEASURED))
    check(rows["kernels"])
    if rows["triton"] == before["triton"]:
        measured = [row for row in before["kernels"] if row["sm"] in (80, 90)]
        assert rows["kernels"] == measured, "run tools/bench/kernels_aot.py again, for docs/"
