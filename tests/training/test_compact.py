"""Compact routing computes what lazy routing does, with parameters of the path's neurons alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import run_distributed_test
from tests.training.test_pretrain import losses, train, train_then_continue, without_dropout
from tests.training.test_routing import config
from trelm_ds.checkpoints.export import full_weights
from trelm_ds.config import Config
from trelm_ds.distributed import Ranks, connect, disconnect
from trelm_ds.run_folder import checkpoints_folder, read_metrics

STEPS = 8


def pair(stage: int, routing: dict[str, Any], norm: float = 0.0, **trainer: Any) -> tuple[Config, Config]:
    """Lazy and compact, with a choice of neurons every two steps."""
    trainer = {"max_steps": STEPS, "checkpoint_every": STEPS // 2, "micro_batch_tokens": 160} | trainer
    made = []
    for compact in (False, True):
        settings = without_dropout(config(stage, routing=routing | {"compact": compact}, **trainer))
        made.append(replace(settings, optimizer=replace(settings.optimizer, max_grad_norm=norm)))
    return made[0], made[1]


def compare(one: Path, other: Path, stage: int, exactly: bool) -> None:
    """Compare all losses and the weights of both checkpoints."""
    for step in (STEPS // 2, STEPS):
        lazy, compact = (full_weights(checkpoints_folder(run) / f"step-{step:08d}", stage) for run in (one, other))
        assert lazy.keys() == compact.keys()
        for name, weight in lazy.items():
            if exactly:
                assert torch.equal(compact[name], weight), name
            else:
                torch.testing.assert_close(compact[name], weight, rtol=1e-5, atol=1e-6)
    if exactly:
        assert losses(other) == losses(one)
    assert losses(other) == pytest.approx(losses(one), rel=1e-5)


@pytest.mark.parametrize(
    ("stage", "routing", "norm"), [(0, {}, 0.0), (1, {"path": "full"}, 0.0), (1, {"trainable": "ffn_only"}, 0.05)]
)
def test_one_rank_computes_the_same(
    stage: int, routing: dict[str, Any], norm: float, one_rank: Ranks, tiny_dataset: Path, tmp_path: Path
) -> None:
    """Bit for bit, unless gradients are clipped: the sum of squares then has another order."""
    for settings, name in zip(pair(stage, routing, norm), ("lazy", "compact"), strict=True):
        train(settings, tiny_dataset, tmp_path / name, one_rank)
    compare(tmp_path / "lazy", tmp_path / "compact", stage, exactly=not norm)
    assert max(point.get("path_turnover", 0.0) for point in read_metrics(tmp_path / "compact")) > 0


def trained(settings: Config, data: Path, run: Path) -> None:
    ranks = connect()
    try:
        train(settings, data, run, ranks)
    finally:
        disconnect()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "precision", "routing"),
    [
        (0, "fp32", {"top_layers": 1}),
        (1, "fp32", {}),
        (2, "fp32", {"trainable": "ffn_only"}),
        (3, "fp32", {"path": "full"}),
        (0, "bf16", {}),
        (1, "bf16", {"path": "full"}),
        (3, "bf16", {}),
    ],
)
def test_two_ranks_compute_the_same_and_continue(
    stage: int, precision: str, routing: dict[str, Any], tiny_dataset: Path, tmp_path: Path
) -> None:
    lazy, compact = pair(stage, routing, precision=precision)
    run_distributed_test(trained, 2, lazy, tiny_dataset, tmp_path / "lazy")
    run_distributed_test(train_then_continue, 2, compact, tiny_dataset, tmp_path / "run")
    compare(tmp_path / "lazy", tmp_path / "run", stage, exactly=True)
    assert losses(tmp_path / "continued") == losses(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [((1, 3), (2, 1)), ((2, 0), (1, 3)), ((2, 2), (1, 0))])
def test_other_ranks_and_stages_continue(
    first: tuple[int, int], then: tuple[int, int], tiny_dataset: Path, tmp_path: Path
) -> None:
    """(ranks, ZeRO stage) at first and then; the weights are those of the lazy run that goes on in the same way."""
    kept = {"keep_every": STEPS // 2}
    for settings, name in zip(pair(first[1], {}, **kept), ("lazy", "compact"), strict=True):
        run = tmp_path / name
        half = replace(settings, trainer=replace(settings.trainer, max_steps=STEPS // 2))
        run_distributed_test(trained, first[0], half, tiny_dataset, run)
        other = replace(settings, trainer=replace(settings.trainer, ds_config=f"ds_configs/zero{then[1]}.json"))
        run_distributed_test(trained, then[0], other, tiny_dataset, run)
    lazy, compact = (full_weights(tmp_path / name / "checkpoints" / f"step-{STEPS:08d}", then[1])
                     for name in ("lazy", "compact"))  # fmt: skip
    assert all(torch.equal(compact[name], weight) for name, weight in lazy.items())
