"""KEPLER's objective in real runs: ranks, ZeRO stages, resume, export, settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed import run_distributed_test
from tests.training import test_pretrain as plain
from tests.training.test_knowledge import comparable, equals_export, equals_one_rank
from tests.training.test_pretrain import continued, fails, train, train_then_continue, without_dropout
from trelm_ds.config import Config, KeplerConfig
from trelm_ds.distributed import Ranks
from trelm_ds.run_folder import read_metrics


def config(stage: int = 1, precision: str = "fp32", **kepler: Any) -> Config:
    settings = {"weight": 0.5, "triples_per_sequence": 1.0, "margin": 6.0} | kepler
    return replace(plain.config(stage, precision, micro_batch_tokens=320), kepler=KeplerConfig(**settings))


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "fp32"), (3, "fp32"), (2, "bf16")])
def test_two_ranks_train_continue_and_export(
    stage: int, precision: str, one_rank: Ranks, tiny_dataset: Path, tmp_path: Path
) -> None:
    run, settings = tmp_path / "run", without_dropout(config(stage, precision))
    logits = run_distributed_test(train_then_continue, 2, settings, tiny_dataset, run)
    assert comparable(tmp_path / "continued") == comparable(run)
    if precision == "fp32":
        equals_one_rank(run, settings, tiny_dataset, tmp_path / "alone", one_rank)
    equals_export(run, tmp_path / "model", logits[0], precision)  # without the table of relations


def test_it_continues_exactly_and_is_logged(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    continued(config(), tiny_dataset, run, one_rank)
    assert comparable(tmp_path / "continued") == comparable(run)
    for point in read_metrics(run):
        assert point["loss"] == pytest.approx(point["mlm_loss"] + 0.5 * point["kepler_loss"])
        assert 0 <= point["kepler_accuracy"] <= 1
        assert "cka_loss" not in point


def test_no_setting_does_nothing(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"weight": 0.0},
        {"weight": 1.0},
        {"margin": 3.0},
        {"norm": 2},
        {"negatives": 2},
        {"triples_per_sequence": 0.5},
    ]
    seen = set()
    for number, change in enumerate(changes):
        train(config(**change), tiny_dataset, tmp_path / str(number), one_rank)
        seen.add(tuple(point["mlm_loss"] for point in read_metrics(tmp_path / str(number))))
    assert len(seen) == len(changes)


def test_at_weight_0_it_is_not_there(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    plainly = train(plain.config(micro_batch_tokens=320), tiny_dataset, tmp_path / "plain", one_rank)
    off = train(config(weight=0.0, margin=9.0), tiny_dataset, tmp_path / "off", one_rank)
    np.testing.assert_array_equal(off, plainly)
    assert not any("kepler" in name for point in read_metrics(tmp_path / "off") for name in point)


def test_the_loss_falls(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    settings = config(weight=1.0, triples_per_sequence=2.0)
    settings = replace(settings, trainer=replace(settings.trainer, max_steps=40, log_every=10))
    train(settings, tiny_dataset, tmp_path / "run", one_rank)
    points = read_metrics(tmp_path / "run")
    assert points[-1]["kepler_loss"] < 0.7 * points[0]["kepler_loss"]


def test_what_a_continuation_must_share(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(config(), tiny_dataset, run, one_rank)
    assert "made with another kepler.margin (6.0, now 5.0)" in fails(config(margin=5.0), tiny_dataset, run, one_rank)
    assert "made with another kepler.weight (0.5, now 0.0)" in fails(config(weight=0.0), tiny_dataset, run, one_rank)
