"""The benchmarks of routing run and write what they measured; what they measured is not judged here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import forked

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"


def run(script: str, *arguments: object) -> None:
    done = forked.run([str(BENCH / script), *map(str, arguments)])
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_attribution(tmp_path: Path) -> None:
    sizes = ("--layers", 4, "--hidden", 32, "--heads", 2, "--neurons", 64, "--facts", 3, "--rounds", 1)
    run("attribution.py", *sizes, "--out", tmp_path / "a.json")
    cost = json.loads((tmp_path / "a.json").read_text())["cost"]
    passes = {name: one["forward_layer_passes"] for name, one in cost.items()}
    # Each layer's 20 nodes through all 4 layers; ours: a prefix of 4, then 3 + 2 + 1 layers above for every node.
    assert passes["loop, right20"] == 4 * 20 * 4
    assert passes["ours, right20, one fact"] == 4 + 20 * 6
    assert passes["ours, gauss3, one fact"] == passes["ours, gauss3, 3 facts at once"] == 4 + 3 * 6


@pytest.mark.slow
def test_step(tiny_dataset: Path, tmp_path: Path) -> None:
    model = ("--model.hidden_size", 32, "--model.num_hidden_layers", 2, "--model.num_attention_heads", 2)
    batch = ("--trainer.global_batch_size", 16, "--trainer.micro_batch_tokens", 512, "--trainer.precision", "fp32")
    knowledge = ("--selection.strategy", "all", "--cka.max_token_share", 1.0)
    run("step.py", "--data", tiny_dataset, "--rounds", 1, "--out", tmp_path / "s.json", *model, *batch, *knowledge)
    result = json.loads((tmp_path / "s.json").read_text())
    assert result["attribution_ms"] > 0
    for name in ("routed, all", "routed, ffn_only"):
        step = result["steps"][name]
        assert step["relative_with_attribution"] >= step["relative"] > 0
    predicted = [result["steps"][name]["predicted_by_flops"] for name in ("routed, all", "routed, ffn_only")]
    assert 1 > predicted[0] > predicted[1] > 0.5
