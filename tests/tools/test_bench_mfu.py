"""What `mfu.py` counts, against numbers worked out by hand; measuring needs a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.forked import ROOT, environment

sys.path.insert(0, str(ROOT / "tools" / "bench"))

from mfu import attended_tokens, cases, counted, flops_of

from trelm_ds.config import Config, MaskingConfig
from trelm_ds.model import EncoderConfig, flops_per_token


def test_flops_follow_the_case_and_the_documents_lengths() -> None:
    assert attended_tokens(np.array([10, 10, 10])) == 10
    assert attended_tokens(np.array([2, 4, 12], dtype=np.uint16)) == pytest.approx((4 + 16 + 144) / 18)
    config = replace(Config(), masking=MaskingConfig(probability=0.15))
    sizes = EncoderConfig.from_settings(config.model, 30522, 0)
    of_case = {name: flops_of(case, sizes, 512) for name, case in cases(config).items()}
    assert of_case["dense"] == of_case["trelm"] == flops_per_token(sizes, 512, 0.15)
    assert of_case["routed"] == of_case["compact"]
    assert of_case["routed"] / of_case["dense"] == pytest.approx(0.83, abs=0.005)  # as docs/speed.md has them
    assert of_case["ffn_only"] / of_case["dense"] == pytest.approx(0.70, abs=0.005)


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
