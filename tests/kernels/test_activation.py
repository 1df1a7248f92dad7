from __future__ import annotations

import pytest
import torch
from trelm_kernels import ACTIVATIONS, activate, activation_backward
from trelm_kernels.activation import BLOCK_F, BLOCK_T, launch, reference

from tests.kernels.conftest import DTYPES, assert_as_good

# T, F, S
SIZES = [
    (1, 1, 1),
    (BLOCK_T, BLOCK_F, 16),
    (BLOCK_T + 1, BLOCK_F + 1, 17),
    (2 * BLOCK_T - 1, BLOCK_F - 1, BLOCK_F - 1),
    (5, 40, 0),
]


def inputs(sizes: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    tokens, neurons, chosen = sizes
    torch.manual_seed(neurons)
    rows = torch.randperm(neurons)[:chosen].sort()[0]
    return torch.randn(tokens, neurons).to(dtype), (2 * torch.randn(tokens, neurons)).to(dtype), rows


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
def test_as_good_as_plain_torch(sizes: tuple[int, int, int], dtype: torch.dtype, activation: str) -> None:
    gradient, before, rows = inputs(sizes, dtype)
    exact = reference(gradient.double(), before.double(), rows, activation)
    plain = reference(gradient, before, rows, activation)
    for place, results in enumerate(zip(launch(gradient, before, rows, activation), plain, exact, strict=True)):
        assert results[0].shape == results[1].shape
        columns = sizes[1] if place == 0 else sizes[2]  # the others mean nothing
        if columns:
            assert_as_good(*(result[:, :columns] for result in results))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_autograd(activation: str) -> None:
    gradient, before, rows = inputs((7, 30, 5))
    before.requires_grad_()
    after = activate(before, activation)
    after.backward(gradient)
    for backward in (launch, activation_backward):
        input_gradient, chosen_gradient, chosen = backward(gradient, before.detach(), rows, activation)
        torch.testing.assert_close(input_gradient, before.grad)
        torch.testing.assert_close(chosen_gradient[:, :5], before.grad[:, rows])
        torch.testing.assert_close(chosen[:, :5], after.detach()[:, rows])


def test_far_from_zero() -> None:
    before = torch.tensor([[-80.0, -10.0, 0.0, 10.0, 80.0]])
    for activation in ACTIVATIONS:
        found = launch(torch.ones(1, 5), before, torch.arange(5), activation)
        for one, other in zip(found, reference(torch.ones(1, 5), before, torch.arange(5), activation), strict=True):
            torch.testing.assert_close(one[:, :5], other[:, :5], atol=1e-6, rtol=1e-6)


def test_what_is_not_finite_passes_as_in_torch() -> None:
    inf, nan = float("inf"), float("nan")
    before, gradient = torch.tensor([[nan, 1.0, -1.0, 2.0, 0.0]]), torch.tensor([[3.0, nan, inf, inf, inf]])
    leaf = before.clone().requires_grad_()
    after = activate(leaf, "relu")
    after.backward(gradient)
    for backward in (launch, reference):
        input_gradient, _, chosen = backward(gradient, before, torch.arange(5), "relu")
        torch.testing.assert_close(input_gradient, leaf.grad, equal_nan=True)
        torch.testing.assert_close(chosen[:, :5], after.detach(), equal_nan=True)


def test_an_unknown_activation_is_refused() -> None:
    for backward in (launch, reference):
        with pytest.raises(ValueError, match="activation: must be one of relu, gelu, gelu_tanh, got silu"):
            backward(*inputs((2, 3, 1)), "silu")


def test_no_token() -> None:
    for backward in (launch, reference):
        shapes = [tuple(x.shape) for x in backward(*inputs((0, 5, 2)), "gelu")]
        assert shapes == [(0, 5), (0, 16), (0, 16)]


def test_strided_inputs() -> None:
    gradient, before, rows = inputs((9, 20, 4))
    expected = launch(gradient, before, rows, "gelu")
    turned = launch(gradient.t().contiguous().t(), torch.cat([before, before], 1)[:, :20], rows, "gelu")
    assert all(torch.equal(a[:, :4], b[:, :4]) for a, b in zip(turned, expected, strict=True))


def test_the_operator_is_well_formed() -> None:
    gradient, before, rows = inputs((6, 12, 4))
    torch.library.opcheck(activation_backward, (gradient, before, rows, "gelu"))
    turned = (x.t().contiguous().t() for x in (gradient, before))
    torch.library.opcheck(activation_backward, (*turned, rows, "relu"))
