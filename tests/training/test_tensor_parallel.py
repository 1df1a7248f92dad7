"""Tensor parallelism in real runs: two ranks that share a model train what one rank trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.distributed import run_distributed_test
from tests.training import test_pretrain as plain
from tests.training.test_knowledge import VARIANTS, equals_export
from tests.training.test_pretrain import losses, train, train_then_continue, without_dropout
from tests.training.test_routing import config, timeless, weights_at
from trelm_ds.checkpoints import export
from trelm_ds.config import Config, OptimizerConfig
from trelm_ds.distributed import Ranks, connect, disconnect
from trelm_ds.routing import ROUTING_FOLDER, read_paths
from trelm_ds.run_folder import committed, read_metrics


def shared(settings: Config, degree: int = 2) -> Config:
    return replace(settings, model=replace(settings.model, tensor_parallel=degree))


def trained(settings: Config, data: Path, run: Path) -> np.ndarray:
    ranks = connect()
    try:
        return train(settings, data, run, ranks)
    finally:
        disconnect()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "precision", "tolerance"), [(1, "fp32", 1e-5), (1, "bf16", 0.02), ("1_fp32_sums", "bf16", 0.02)]
)
def test_twenty_losses(
    stage: int | str, precision: str, tolerance: float, one_rank: Ranks, tiny_dataset: Path, tmp_path: Path
) -> None:
    """With all of TRELM's parts, two ranks to a model: losses, gradient norms and logits."""
    run, alone = tmp_path / "run", tmp_path / "alone"
    settings = without_dropout(config(stage, precision, max_steps=20, checkpoint_every=20, micro_batch_tokens=160))
    logits = run_distributed_test(trained, 2, shared(settings), tiny_dataset, run)
    expected = train(settings, tiny_dataset, alone, one_rank)
    assert len(losses(run)) == 20
    assert losses(run) == pytest.approx(losses(alone), rel=tolerance, abs=0)
    norms = [[point["grad_norm"] for point in read_metrics(folder)] for folder in (run, alone)]
    assert norms[0] == pytest.approx(norms[1], rel=tolerance, abs=0)
    if precision == "bf16":
        return
    paths = [read_paths(committed(folder)[0] / ROUTING_FOLDER)["path"] for folder in (run, alone)]
    assert torch.equal(*paths)
    for each in logits:
        assert each == pytest.approx(expected, abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "stage", "variant", "routing"),
    [
        (4, 0, "query", {}),
        (4, 1, "all words", {"path": "full"}),
        (4, 2, "product", {"trainable": "ffn_only"}),
        (4, 3, "trained", {"score_ema": 0.5}),
    ],
)
def test_as_one_rank(
    world_size: int,
    stage: int,
    variant: str,
    routing: dict[str, Any],
    one_rank: Ranks,
    tiny_dataset: Path,
    tmp_path: Path,
) -> None:
    """Losses, gradient norms, neurons and weights; a continuation is equal to the bit."""
    run, alone = tmp_path / "run", tmp_path / "alone"
    settings = VARIANTS[variant](without_dropout(config(stage, routing=routing, micro_batch_tokens=160)))
    logits = run_distributed_test(train_then_continue, world_size, shared(settings), tiny_dataset, run)
    assert timeless(tmp_path / "continued") == timeless(run)
    expected = train(settings, tiny_dataset, alone, one_rank)
    for ours, theirs in zip(timeless(run), timeless(alone), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-7)
    paths = [read_paths(committed(folder)[0] / ROUTING_FOLDER)["path"] for folder in (run, alone)]
    assert torch.equal(*paths)
    before = weights_at(alone, 4)
    for name, weight in weights_at(run, 4).items():
        torch.testing.assert_close(weight, before[name], rtol=1e-4, atol=1e-5)
    for each in logits:
        assert each == pytest.approx(expected, abs=1e-4)
    equals_export(run, tmp_path / "model", logits[0], "fp32")


# Steps as long as clipped gradients, so that a wrong norm would show in losses, too.
CLIPPED = OptimizerConfig(lr=0.3, eps=1.0, warmup_steps=0, max_grad_norm=0.1)


def clipped(stage: int, precision: str, start: Path | None) -> Config:
    settings = without_dropout(plain.config(stage, precision, max_steps=2))
    model = replace(settings.model, init_from=None if start is None else str(start))
    return replace(settings, optimizer=CLIPPED, model=model)


def train_all(cases: list[Config], data: Path, runs: Path) -> None:
    ranks = connect()
    for number, settings in enumerate(cases):
        train(settings, data, runs / f"{number}", ranks)
    disconnect()


@pytest.mark.slow
def test_gradients_are_clipped_by_the_norm_of_all_parts(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    """Of a fresh model and of one from a folder, which leaves device meta after it was cut."""
    train(clipped(0, "fp32", None), tiny_dataset, tmp_path / "alone", one_rank)
    export(tmp_path / "alone", tmp_path / "start")
    train(clipped(0, "fp32", tmp_path / "start"), tiny_dataset, tmp_path / "alone from start", one_rank)
    cases = [
        *(clipped(stage, "fp32", tmp_path / "start") for stage in (0, 1)),
        *(clipped(stage, "bf16", None) for stage in (0, 3)),
    ]
    run_distributed_test(train_all, 2, [shared(settings) for settings in cases], tiny_dataset, tmp_path)
    for number, settings in enumerate(cases):
        alone = "alone" if settings.model.init_from is None else "alone from start"
        tolerance = 1e-4 if settings.trainer.precision == "fp32" else 1e-2
        for ours, theirs in zip(*map(read_metrics, (tmp_path / f"{number}", tmp_path / alone)), strict=True):
            for name in ("grad_norm", "loss"):
                assert ours[name] == pytest.approx(theirs[name], rel=tolerance), settings.trainer
