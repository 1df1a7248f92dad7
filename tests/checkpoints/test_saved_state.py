"""Checkpoints from before queries, keys and values were one matrix, written here as DeepSpeed wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trelm_ds.checkpoints.saved_state import WEIGHT, open_saved_state

LAYER, SIZE = "encoder.layers.0.attention.", 4
PARTS = ("query", "key", "value", "output")


def weights(offset: float) -> dict[str, Tensor]:
    """By their names then, in the optimizer's order: matrices."""
    return {
        f"{LAYER}{part}.weight": torch.arange(SIZE * SIZE).view(SIZE, SIZE) + 100.0 * number + offset
        for number, part in enumerate(PARTS)
    }


def zero0(folder: Path) -> None:
    state = {
        index: {"step": torch.tensor(3.0), "exp_avg": moment} for index, moment in enumerate(weights(0.5).values())
    }
    optimizer = {"state": state, "param_groups": [{"lr": 1.0, "params": [0, 1, 2, 3]}]}
    torch.save(counters() | {"optimizer": optimizer, "module": weights(0)}, folder / "mp_rank_00_model_states.pt")


def zero1(folder: Path) -> None:
    """Two ranks; the cut goes through the middle of the keys' and values' elements."""
    shapes = {name: weight.shape for name, weight in weights(0).items()}
    model = counters() | {"param_shapes": [shapes], "module": weights(0), "dp_world_size": 2}
    torch.save(model, folder / "mp_rank_00_model_states.pt")
    whole, moments = (torch.cat([weight.flatten() for weight in weights(offset).values()]) for offset in (0, 0.5))
    for rank in range(2):
        piece = slice(rank * 2 * SIZE * SIZE, (rank + 1) * 2 * SIZE * SIZE)
        optimizer = {
            "base_optimizer_state": {
                "state": {0: {"step": torch.tensor(3.0), "exp_avg": moments[piece]}},
                "param_groups": [{"lr": 1.0, "params": [0]}],
            },
            "single_partition_of_fp32_groups": [whole[piece]],
            "group_paddings": [0],
            "param_alignment_paddings": [[0] * len(shapes)],
        }
        name = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": optimizer}, folder / name)


def zero3(folder: Path) -> None:
    """Two ranks, each with half of every parameter; frozen ones have no optimizer state."""
    shapes = {name: weight.shape for name, weight in weights(0).items()}
    for rank in range(2):
        half = slice(rank * SIZE * SIZE // 2, (rank + 1) * SIZE * SIZE // 2)
        pieces = {name: weight.flatten()[half] for name, weight in weights(0).items()}
        model = {"param_shapes": [], "frozen_param_shapes": shapes, "frozen_param_fragments": pieces}
        torch.save(
            counters() | model | {"dp_world_size": 2}, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"
        )
        optimizer: dict[str, Any] = {"optimizer_state_dict": {"state": {}, "param_groups": []}, "fp32_flat_groups": []}
        torch.save({"optimizer_state_dict": optimizer}, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")


def counters() -> dict[str, Any]:
    return {"global_steps": 3, "global_samples": 3, "skipped_steps": 0, "lr_scheduler": {}}


@pytest.mark.parametrize(("stage", "write"), [(0, zero0), (1, zero1), (3, zero3)])
def test_queries_keys_and_values_are_joined(stage: int, write: Any, tmp_path: Path) -> None:
    write(tmp_path)
    whole, output = f"{LAYER}qkv.weight", f"{LAYER}output.weight"
    saved = open_saved_state(tmp_path, stage, [whole, output])
    assert saved.shapes == {whole: (3 * SIZE, SIZE), output: (SIZE, SIZE)}
    joined, moments = (torch.cat([*weights(offset).values()][:3]) for offset in (0, 0.5))
    assert torch.equal(saved.weight(whole), joined)
    assert torch.equal(saved.weight(output), weights(0)[output])
    piece = torch.empty(2 * SIZE * SIZE)  # across both seams
    saved.copy(whole, WEIGHT, 10, piece)
    assert torch.equal(piece, joined.flatten()[10 : 10 + len(piece)])
    if stage == 3:
        assert not saved.steps
        return
    assert saved.steps == {whole: 3.0, output: 3.0}
    saved.copy(whole, "exp_avg", 10, piece)
    assert torch.equal(piece, moments.flatten()[10 : 10 + len(piece)])
