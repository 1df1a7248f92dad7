"""Gradients of many micro-batches and two ranks, summed in bf16 and in fp32: what the optimizer gets."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed import run_distributed_test
from tests.training.test_pretrain import config, without_dropout, without_plots
from trelm_ds.distributed import Ranks, connect, disconnect
from trelm_ds.engine import base_optimizer, slots_of
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run
from trelm_ds.training.trainer import Trainer

SUMS: dict[str, Any] = {"data_types": {"grad_accum_dtype": "fp32"}}
BETWEEN_RANKS = {"communication_data_type": "fp32"}
OFFLOADED = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}
FILES: dict[str, dict[str, Any]] = {
    f"{stage} {name}": {"zero_optimization": {"stage": stage} | zero} | sums
    for stage in (1, 2, 3)
    for name, zero, sums in (
        ("in bf16", {}, {}),
        ("in fp32", {}, SUMS),
        ("in fp32, also between ranks", {}, SUMS | BETWEEN_RANKS),
        ("in fp32, also between ranks, offloaded", OFFLOADED, SUMS | BETWEEN_RANKS),
    )
} | {
    "1 in fp32, also between ranks, at once": json.loads(
        (Path(__file__).resolve().parents[2] / "ds_configs" / "zero1_fp32_sums.json").read_text()
    )
}
Gradients = dict[str, Tensor]


def reference(trainer: Trainer) -> Gradients:
    """From now on the gradients of all backward passes, each as it leaves its pass, are summed in float64."""
    sums: Gradients = {}

    def add(gradient: Tensor, name: str) -> None:
        sums[name] = sums.get(name, torch.zeros(())) + gradient.double().flatten()

    for name, parameter in trainer.engine.module.named_parameters():
        parameter.register_hook(lambda gradient, name=name: add(gradient, name))
    return sums


def given(trainer: Trainer) -> dict[tuple[str, int], Tensor]:
    """From now on what the optimizer is given: this rank's parts, by parameter and first element."""
    optimizer, slots, parts = base_optimizer(trainer.engine), list(slots_of(trainer.engine)), {}

    def step(closure: Any = None) -> None:  # changes nothing, so that all files see the same weights
        for slot in slots:
            if slot.master.grad is not None:
                parts[slot.name, slot.start] = slot.of(slot.master.grad).double().clone()

    optimizer.step = step  # type: ignore[method-assign]
    return parts


def whole(parts: Iterable[dict[tuple[str, int], Tensor]]) -> Gradients:
    """The parts of all ranks, put together."""
    every = {place: part for of_rank in parts for place, part in of_rank.items()}
    names = {name for name, _ in every}
    return {name: torch.cat([every[place] for place in sorted(every) if place[0] == name]) for name in names}


def distance(gradients: Gradients, truth: Gradients) -> float:
    squares = [((gradients[name] - truth[name]).square().sum(), truth[name].square().sum()) for name in truth]
    return float((sum(of_error for of_error, _ in squares) / sum(of_truth for _, of_truth in squares)) ** 0.5)


def sums_of(folder: Path, data: Path) -> dict[str, float]:
    """One step of several micro-batches with each file; the distance of its gradient from the exact sum, relatively."""
    torch.set_num_threads(1)
    ranks, found, truth = connect(), {}, Gradients()
    try:
        for name in FILES:
            gradients, exact = step_with(folder / f"{name}.json", data, folder / name, ranks)
            truth = exact or truth  # the same weights under all stages
            found[name] = distance(gradients, truth)
    finally:
        disconnect()
    return found


def step_with(file: Path, data: Path, run: Path, ranks: Ranks) -> tuple[Gradients, Gradients]:
    settings = without_dropout(config(precision="bf16", max_steps=1, global_batch_size=48, micro_batch_tokens=40))
    settings.trainer.ds_config, settings.optimizer.max_grad_norm = str(file), 0.0
    with without_plots(), StopSignals() as signals:
        trainer = build_run(settings, str(data), run, ranks, signals)
        exact = reference(trainer) if trainer.zero_stage < 3 else {}  # hooks do not see what ZeRO 3 cuts to pieces
        parts = given(trainer)
        assert trainer.train() == 0
    every = ranks.gather(exact)
    return whole(ranks.gather(parts)), {name: sum(of[name] for of in every) / len(every) for name in exact}


@pytest.mark.slow
def test_sums_in_fp32_are_nearer_to_the_truth(tiny_dataset: Path, tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    found = run_distributed_test(sums_of, 2, tmp_path, tiny_dataset)[0]
    for name, error in found.items():
        coarse = found[f"{name[0]} in bf16"]
        if "between ranks" in name:
            assert error < 1e-5 * coarse, (name, found)
        elif "fp32" in name:
            assert error < 0.8 * coarse, (name, found)
        else:
            assert 1e-3 < error < 1e-2, (name, found)
