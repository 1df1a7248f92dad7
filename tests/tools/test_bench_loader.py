"""The loader's benchmark runs end to end on a small source; its figures are not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_it_measures_every_contender_and_writes_the_tables(tiny_corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "loader.md").write_text("before\n<!-- loader-table -->\nold\n<!-- /loader-table -->\nafter\n")
    source = ("--source", tiny_corpus / "corpus.jsonl", "--wikidata5m", tiny_corpus / "wikidata5m")
    command = [sys.executable, ROOT / "tools" / "bench" / "loader.py", *source, "--tokens", "4000", "--repeats", "1"]
    done = subprocess.run(
        [*map(str, command), "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "benchmarks" / "loader.json").read_text())
    assert {"device", "versions", "date", "source", "repeats"} <= result.keys()
    assert result["datasets"]["long"]["mean_tokens"] > 3 * result["datasets"]["short"]["mean_tokens"]
    for about in result["datasets"].values():
        assert len(about["tokens_per_s"]) == 7
        assert all(values["min"] > 0 for values in about["tokens_per_s"].values())
        assert len(about["resume_ms"]) == 2
    page = (tmp_path / "loader.md").read_text()
    assert page.startswith("before\n<!-- loader-table -->\n| million tokens/s per core | short")
    assert page.endswith("<!-- /loader-table -->\nafter\n")
    assert "old" not in page
