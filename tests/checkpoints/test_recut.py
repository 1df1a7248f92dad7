"""A model saved in parts, given to another number of ranks: each parameter and its state to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trelm_ds.checkpoints.recut import recut
from trelm_ds.checkpoints.saved_state import WEIGHT, SavedState
from trelm_ds.config import ModelConfig
from trelm_ds.model import EncoderConfig, MaskedLanguageModel, cut, partition_of

WORDS = 51  # padded to 52 on two and on four ranks


def whole_state() -> dict[str, dict[str, Tensor]]:
    """Weight and optimizer state of every parameter of a model; numbers of updates are integers."""
    sizes = ModelConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=4, intermediate_size=12)
    model = MaskedLanguageModel(EncoderConfig.from_settings(sizes, WORDS, 0))
    return {
        name: {
            WEIGHT: torch.randn(parameter.shape),
            "exp_avg": torch.randn(parameter.shape),
            "updates": torch.randint(9, parameter.shape, dtype=torch.int16),
        }
        for name, parameter in model.named_parameters()
    }


def part(state: dict[str, dict[str, Tensor]], rank: int, degree: int) -> SavedState:
    """What one of t ranks saves, in two fragments where there is more than one element."""
    saved = SavedState(common={"global_steps": 3})
    for name, tensors in state.items():
        if (partition := partition_of(name)) is not None:
            tensors = {key: cut(tensor, partition, rank, degree) for key, tensor in tensors.items()}
        saved.shapes[name] = tuple(tensors[WEIGHT].shape)
        size = tensors[WEIGHT].numel()
        for first, last in ((0, size // 2), (size // 2, size)):
            flat = {key: tensor.reshape(-1)[first:last] for key, tensor in tensors.items()}
            saved.add(name, last - first, flat.pop(WEIGHT), flat | {"step": 7.0})
    return saved


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4), (4, 2), (4, 1), (2, 2)])
def test_parts_are_those_of_the_other_degree(before: int, after: int) -> None:
    state = whole_state()
    parts = [part(state, rank, before) for rank in range(before)]
    for rank in range(after):
        found, expected = recut(parts, rank, after, WORDS), part(state, rank, after)
        assert found.shapes == expected.shapes
        assert found.steps == expected.steps
        assert found.common == {"global_steps": 3}
        for name, shape in expected.shapes.items():
            assert found.state_dtypes(name) == expected.state_dtypes(name)
            for key in (WEIGHT, "exp_avg", "updates"):
                one, other = (torch.empty(torch.Size(shape).numel(), dtype=state[name][key].dtype) for _ in range(2))
                found.copy(name, key, 0, one)
                expected.copy(name, key, 0, other)
                assert torch.equal(one, other), (name, key)


def test_for_an_export_weights_are_enough() -> None:
    state = whole_state()
    found = recut([part(state, rank, 2) for rank in range(2)], 0, 1, WORDS, weights_only=True)
    for name, tensors in state.items():
        assert torch.equal(found.weight(name), tensors[WEIGHT]), name
