"""Chunked cross-entropy against torch's on whole scores."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trelm_ds.model import linear_cross_entropy

SIZE, WORDS = 16, 53


def inputs(rows: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(rows)
    states, weight, bias = (torch.randn(*shape, generator=draw).to(dtype).requires_grad_()
                            for shape in ((rows, SIZE), (WORDS, SIZE), (WORDS,)))  # fmt: skip
    return states, weight, bias, torch.randint(WORDS, (rows,), generator=draw)


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 20])
@pytest.mark.parametrize("held", [1, 8 * WORDS - 1, 8 * WORDS, 1 << 20])
def test_loss_and_gradients(rows: int, held: int) -> None:
    states, weight, bias, labels = inputs(rows, torch.float32)
    loss, correct = linear_cross_entropy(states, weight, bias, labels, held)
    (3 * loss).backward()
    exact = [tensor.detach().double().requires_grad_() for tensor in (states, weight, bias)]
    scores = F.linear(*exact)
    expected = F.cross_entropy(scores, labels, reduction="sum")
    (3 * expected).backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    assert correct == (scores.argmax(-1) == labels).sum()
    for ours, theirs in zip((states, weight, bias), exact, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-5)


def test_half_precision_is_as_near_as_whole_scores() -> None:
    rows = 40
    exact = inputs(rows, torch.float64)
    F.cross_entropy(F.linear(*exact[:3]), exact[3], reduction="sum").backward()
    errors = []
    for held in (7 * WORDS, None):
        given = [tensor.detach().bfloat16().requires_grad_() for tensor in exact[:3]]
        if held is None:
            loss = F.cross_entropy(F.linear(*given).float(), exact[3], reduction="sum")
        else:
            loss = linear_cross_entropy(*given, exact[3], held)[0]
        loss.backward()
        assert all(tensor.grad.dtype == torch.bfloat16 for tensor in given)
        errors.append(
            [(ours.grad.double() - theirs.grad).norm().item() for ours, theirs in zip(given, exact[:3], strict=True)]
        )
    for chunked, whole in zip(*errors, strict=True):
        assert chunked <= 1.2 * whole


def test_nothing_is_kept_where_nothing_is_learned() -> None:
    states, weight, bias, labels = inputs(9, torch.float32)
    with torch.no_grad():
        loss, _ = linear_cross_entropy(states, weight, bias, labels)
    assert loss.grad_fn is None
    torch.testing.assert_close(loss, F.cross_entropy(F.linear(states, weight, bias), labels, reduction="sum"))


@pytest.mark.parametrize("frozen", [(0,), (1, 2), (0, 1), (0, 1, 2)])
def test_no_gradient_is_computed_that_nobody_wants(frozen: tuple[int, ...]) -> None:
    """Neither of frozen weights, [V, D] as large as they are, nor where nothing is differentiated."""
    given = inputs(9, torch.float32)
    linear_cross_entropy(*given, 2 * WORDS)[0].backward()
    expected = [tensor.grad for tensor in given[:3]]
    again = [tensor.detach().requires_grad_(number not in frozen) for number, tensor in enumerate(given[:3])]
    made = shapes_made(lambda: linear_cross_entropy(*again, given[3], 2 * WORDS)[0])
    if 0 in frozen:
        assert (9, SIZE) not in made
    if 1 in frozen:
        assert (WORDS, SIZE) not in made
    if len(frozen) < 3:
        linear_cross_entropy(*again, given[3], 2 * WORDS)[0].backward()
    for number, tensor in enumerate(again):
        assert tensor.grad is None if number in frozen else torch.equal(tensor.grad, expected[number])
    with torch.no_grad():
        assert not {(9, SIZE), (WORDS, SIZE)} & shapes_made(lambda: linear_cross_entropy(*given, 2 * WORDS))


def shapes_made(call: Callable[[], object]) -> set[tuple[int, ...]]:
    """Collect the shapes of all tensors that operations return."""
    shapes = set()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            made = function(*args, **kwargs or {})
            if isinstance(made, Tensor):
                shapes.add(tuple(made.shape))
            return made

    with Recorder():
        call()
    return shapes


def test_a_factor_keeps_its_digits_in_half_precision() -> None:
    """A factor between two numbers of bf16 must scale what goes back to the states as it scales the weight's part."""
    factor = 1.5 + 2**-8
    states, weight, bias, labels = inputs(64, torch.bfloat16)
    plain = torch.autograd.grad(linear_cross_entropy(states, weight, bias, labels)[0], (states, weight))
    scaled = torch.autograd.grad(factor * linear_cross_entropy(states, weight, bias, labels)[0], (states, weight))
    for once, more in zip(plain, scaled, strict=True):
        assert abs((more.double().norm() / once.double().norm()).item() - factor) < 2**-10


def test_labels_alone_decide_ties_as_argmax_does() -> None:
    weight, bias = torch.zeros(3, 2), torch.zeros(3)
    _, correct = linear_cross_entropy(torch.zeros(3, 2), weight, bias, torch.tensor([0, 1, 2]))
    assert correct == 1
