"""`planned_speed.py`: which choices it takes, and that it comes to its end on a tiny case; speeds are not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked import ROOT, environment
from tests.planning.made_plans import choice, planned

sys.path.insert(0, str(ROOT / "tools" / "bench"))

from planned_speed import DEFAULT, MARK, PAGE, spread, table


def test_choices_are_spread_over_the_plan() -> None:
    rows = [planned(choice(0, 64 * number), 100 - number) for number in range(1, 16)]
    assert [row.tokens_per_s for row in spread(rows[::-1], 8)] == [99, 97, 95, 93, 91, 89, 87, 85]
    assert spread(rows[:3], 8) == rows[:3]


def test_its_page_has_a_place_for_the_table() -> None:
    page = PAGE.read_text()
    assert page.count(f"<!-- {MARK} -->") == page.count(f"<!-- /{MARK} -->") == 1
    assert all(Path(argument).is_file() for argument in DEFAULT if argument.endswith(".yaml"))


@pytest.mark.slow
def test_it_measures_what_it_plans(tiny_dataset: Path, tmp_path: Path) -> None:
    settings = tmp_path / "run.yaml"
    settings.write_text(
        "model: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 32}\n"
        "optimizer: {warmup_steps: 2}\nselection: {strategy: none}\nmemory: {enabled: false}\ncka: {decoder: none}\n"
        "routing: {enabled: false}\nloader: {workers: 0}\n"
        "trainer: {max_steps: 100, global_batch_size: 16, micro_batch_tokens: 64, precision: fp32}\n"
    )
    script = [sys.executable, str(ROOT / "tools" / "bench" / "planned_speed.py"), "--config", str(settings)]
    script += ["--data", str(tiny_dataset), "--choices", "2", "--steps", "4", "--out", str(tmp_path / "out.json")]
    done = subprocess.run(script, env=environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert {"device", "machine", "date", "versions", "settings"} <= result.keys()
    assert [found["status"] for found in result["choices"]] == ["ok", "ok"]
    assert all(found["tokens_per_s"] > 0 and found["planned"]["tokens_per_s"] > 0 for found in result["choices"])
    assert "recomputed" in result["choices"][1]["name"]  # the slowest that is planned
    assert result["rank_correlation"] is None  # of two
    assert done.stdout == f"{table(result)}\n"
