from __future__ import annotations

import pytest
import torch
from trelm_kernels import path_weight_gradient
from trelm_kernels.weight_gradient import BLOCK_D, BLOCK_S, BLOCK_T, launch, reference

from tests.kernels.conftest import DTYPES, assert_as_good

# T, F, D, S: one of everything; blocks exactly full; one more and one less; several splits of the tokens
SIZES = [
    (1, 1, 1, 1),
    (BLOCK_T, 2 * BLOCK_S, BLOCK_D, BLOCK_S),
    (BLOCK_T + 1, 97, BLOCK_D + 1, BLOCK_S + 1),
    (BLOCK_T - 1, 70, BLOCK_D - 1, BLOCK_S - 1),
    (16 * BLOCK_T + 5, 40, 30, 7),
]


def inputs(
    sizes: tuple[int, int, int, int], dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    tokens, neurons, size, chosen = sizes
    torch.manual_seed(tokens + neurons)
    rows = torch.randperm(neurons)[:chosen].sort()[0]
    return torch.randn(tokens, chosen).to(dtype), torch.randn(tokens, size).to(dtype), rows, neurons


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
def test_as_good_as_plain_torch(sizes: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    left, right, rows, neurons = inputs(sizes, dtype)
    exact = reference(left.double(), right.double(), rows, neurons, True)
    plain = reference(left, right, rows, neurons, True)
    for found, expected, true in zip(launch(left, right, rows, neurons, True), plain, exact, strict=True):
        assert_as_good(found, expected, true)


def test_equals_the_dense_product_where_chosen() -> None:
    """In plain steps: every neuron's product, then zeros for those that are off the path."""
    _, right, rows, neurons = inputs((100, 50, 20, 9))
    every = torch.randn(100, 50)
    expected, expected_bias = torch.zeros(50, 20), torch.zeros(50)
    for row in rows.tolist():
        expected[row], expected_bias[row] = every[:, row] @ right, every[:, row].sum()
    for product in (launch, reference, path_weight_gradient):
        weight, bias = product(every[:, rows], right, rows, neurons, True)
        torch.testing.assert_close(weight, expected)
        torch.testing.assert_close(bias, expected_bias)
        assert len(product(every[:, rows], right, rows, neurons)[1]) == 0


@pytest.mark.parametrize("sizes", [(0, 5, 6, 2), (5, 5, 6, 0), (5, 5, 0, 2)])
def test_nothing_to_add_up(sizes: tuple[int, int, int, int]) -> None:
    left, right, rows, neurons = inputs(sizes)
    for product in (launch, reference):
        weight, bias = product(left, right, rows, neurons, True)
        assert weight.shape == (5, sizes[2])
        assert (weight == 0).all()
        expected = torch.zeros(5).index_add(0, rows, left.sum(0))
        torch.testing.assert_close(bias, expected)


def test_strided_inputs_further_columns_and_repeatable() -> None:
    left, right, rows, neurons = inputs((600, 40, 33, 11))
    expected = launch(left, right, rows, neurons, True)
    wide = torch.full((600, 16), float("nan"))
    wide[:, :11] = left
    for one in (wide[:, :11], wide, left.t().contiguous().t()):
        for found, value in zip(launch(one, right, rows, neurons, True), expected, strict=True):
            assert torch.equal(found, value)
    for found, value in zip(reference(wide, right, rows, neurons, True), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-4)


def test_the_operator_is_well_formed() -> None:
    given = inputs((20, 12, 9, 4))
    torch.library.opcheck(path_weight_gradient, (*given, True))
    torch.library.opcheck(path_weight_gradient, given)
