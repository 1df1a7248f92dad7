from __future__ import annotations

import pytest
import torch
from trelm_kernels import riemann_scores
from trelm_kernels.riemann import BLOCK_D, BLOCK_F, BLOCK_T, launch, reference

from tests.kernels.conftest import DTYPES, assert_as_good

# m, T, D, F
SIZES = [
    (1, 1, 1, 1),
    (3, BLOCK_T, BLOCK_D, BLOCK_F),
    (3, BLOCK_T + 1, BLOCK_D + 1, BLOCK_F + 1),
    (20, BLOCK_T - 1, BLOCK_D - 1, BLOCK_F - 1),
    (2, 8 * BLOCK_T + 3, 20, 10),
]


def inputs(sizes: tuple[int, int, int, int], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    nodes, targets, size, neurons = sizes
    torch.manual_seed(targets)
    gradients, values = torch.randn(nodes, targets, size), torch.randn(neurons, size)
    return gradients.to(dtype), torch.rand(nodes), values.to(dtype), torch.randn(targets, neurons).to(dtype)


def literal(gradients: torch.Tensor, weights: torch.Tensor, values: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Eq. 11 as it stands: the gradient by every neuron at every node, then the sum."""
    by_neuron = gradients.double() @ values.double().t()  # [m, T, F]
    attribution = v.double() * (weights.double()[:, None, None] * by_neuron).sum(0)
    return attribution.clamp(min=0).sum(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
def test_as_good_as_plain_torch(sizes: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    given = inputs(sizes, dtype)
    assert_as_good(launch(*given), reference(*given), literal(*given))
    torch.testing.assert_close(riemann_scores(*given), reference(*given))


def test_nothing_to_score() -> None:
    gradients, weights, values, activations = inputs((3, 0, 8, 5), torch.float32)
    for scores in (launch, riemann_scores):
        assert torch.equal(scores(gradients, weights, values, activations), torch.zeros(5))


def test_the_operator_is_well_formed() -> None:
    torch.library.opcheck(riemann_scores, inputs((3, 7, 8, 5), torch.float32))


def test_repeatable() -> None:
    given = inputs((3, 300, 20, 10), torch.float32)
    assert torch.equal(launch(*given), launch(*given))


def test_a_score_of_nan_is_seen() -> None:
    gradients, weights, values, activations = inputs((3, 7, 8, 5), torch.float32)
    activations[2, 1] = float("nan")
    for scores in (launch, reference):
        assert scores(gradients, weights, values, activations).isnan().tolist() == [False, True, False, False, False]
