from __future__ import annotations

import pytest
import torch
from trelm_kernels import ACTIVATIONS, activate, gathered_weight_gradient
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


def inputs(sizes: tuple[int, int, int, int], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens, neurons, size, chosen = sizes
    torch.manual_seed(tokens + neurons)
    rows = torch.randperm(neurons)[:chosen].sort()[0]
    return torch.randn(tokens, neurons).to(dtype), torch.randn(tokens, size).to(dtype), rows


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
def test_as_good_as_plain_torch(sizes: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    left, right, rows = inputs(sizes, dtype)
    for activation in ACTIVATIONS:
        exact = reference(left.double(), right.double(), rows, activation, True)
        plain = reference(left, right, rows, activation, True)
        for found, expected, true in zip(launch(left, right, rows, activation, True), plain, exact, strict=True):
            assert_as_good(found, expected, true)


def test_only_chosen_rows_are_written_and_equal_the_dense_product() -> None:
    left, right, rows = inputs((100, 50, 20, 9), torch.float32)
    dense = left.t() @ right
    for product in (launch, gathered_weight_gradient):
        weight, bias = product(left, right, rows)
        torch.testing.assert_close(weight[rows], dense[rows])
        others = torch.ones(50, dtype=torch.bool)
        others[rows] = False
        assert (weight[others] == 0).all()
        assert len(bias) == 0


@pytest.mark.parametrize("sizes", [(0, 5, 6, 2), (5, 5, 6, 0), (5, 5, 0, 2)])
def test_nothing_to_add_up(sizes: tuple[int, int, int, int]) -> None:
    left, right, rows = inputs(sizes, torch.float32)
    for product in (launch, reference):
        weight, bias = product(left, right, rows, "gelu", True)
        assert weight.shape == (5, sizes[2])
        assert (weight == 0).all()
        assert bias.shape == (5,)
        if not sizes[3] or not sizes[0]:
            assert (bias == 0).all()


def test_strided_inputs_and_repeatable() -> None:
    left, right, rows = inputs((600, 40, 33, 11), torch.float32)
    expected = launch(left, right, rows, "gelu", True)
    wide = torch.full((600, 80), float("nan"))
    wide[:, :40] = left
    for one in (wide[:, :40], left.t().contiguous().t()):
        for found, value in zip(launch(one, right, rows, "gelu", True), expected, strict=True):
            assert torch.equal(found, value)


def test_rows_in_any_order() -> None:
    left, right, rows = inputs((50, 30, 20, 8), torch.float32)
    shuffled = rows[torch.randperm(len(rows))]
    assert torch.equal(launch(left, right, rows)[0], launch(left, right, shuffled)[0])


def test_the_operator_is_well_formed() -> None:
    left, right, rows = inputs((20, 12, 9, 4), torch.float32)
    torch.library.opcheck(gathered_weight_gradient, (left, right, rows, "gelu", True))
    torch.library.opcheck(gathered_weight_gradient, (left, right, rows))


def test_activations_are_torch_s() -> None:
    x = torch.linspace(-6, 6, 999)[:, None]
    one, row = torch.ones(999, 1), torch.tensor([0])
    for activation in ACTIVATIONS:
        for place in range(0, 999, 111):
            found = launch(x[place : place + 1], one[:1], row, activation)[0]
            torch.testing.assert_close(found[0], activate(x[place], activation), atol=1e-6, rtol=1e-5)
