"""What `mfu.py` counts, against numbers worked out by hand; measuring needs a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.forked import ROOT, environment

sys.path.insert(0, str(ROOT / "tools" / "bench"))

from flops import training_flops
from mfu import counted, peak_of

from trelm_ds.config import Config, MaskingConfig


def test_flops_of_bert_base() -> None:
    """12 layers of 8 D^2 + 4 S D + 4 D F, and the head for 15% of the tokens, three times."""
    config = replace(Config(), masking=MaskingConfig(probability=0.15))
    layer = 8 * 768**2 + 4 * 512 * 768 + 4 * 768 * 3072
    head = 0.15 * (2 * 768**2 + 2 * 768 * 30522)
    dense = training_flops(config, 512, 30522)
    assert dense == pytest.approx(3 * (12 * layer + head))
    assert training_flops(config, 512, 30522, density=0.1) == pytest.approx(dense - 0.9 * 12 * 4 * 768 * 3072)
    assert training_flops(config, 512, 30522, 0.1, "ffn_only") < 0.7 * dense


def test_bytes_of_bert_base() -> None:
    found = counted(Config(), 30522, 512)
    assert list(found) == ["dense", "trelm", "routed", "ffn_only", "compact", "compact, ffn_only"]
    assert found["dense"]["gb_weights"] == pytest.approx(2 * 109.5e6 / 1e9, rel=0.01)
    assert found["dense"]["gb_optimizer"] == pytest.approx(6 * found["dense"]["gb_weights"], rel=0.01)
    neurons = 12 * (2 * 768 * 3072 + 3072)
    assert found["ffn_only"]["gb_gradients"] == pytest.approx(2 * neurons / 1e9, rel=0.01)
    assert found["routed"]["gb_optimizer"] == pytest.approx((12 * 109.5e6 + 2 * neurons) / 1e9, rel=0.01)
    assert found["compact, ffn_only"]["gb_gradients"] == pytest.approx(0.1 * 2 * neurons / 1e9, rel=0.05)
    assert found["compact, ffn_only"]["gb_table"] == pytest.approx(14 * neurons / 1e9, rel=0.01)


def test_peaks_go_by_the_gpus_name() -> None:
    assert peak_of("NVIDIA H100 80GB HBM3") == 989.0
    assert peak_of("NVIDIA H100 PCIe") == 756.0
    assert peak_of("NVIDIA A100-SXM4-80GB") == 312.0
    assert peak_of("Another") is None


def test_without_a_gpu_it_says_that_nothing_was_measured(tmp_path: Path) -> None:
    script = [
        sys.executable,
        str(ROOT / "tools" / "bench" / "mfu.py"),
        "--sizes",
        "base",
        "--out",
        str(tmp_path / "out"),
    ]
    more = {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(script, env=environment() | more, capture_output=True, text=True, timeout=300, check=True)
    result = json.loads(done.stdout)
    assert "nothing was measured" in result["device"]
    assert "tokens_per_s" not in result["sizes"]["base"]["dense"]
    assert json.loads((tmp_path / "out").read_text()) == result
