"""Chunked cross-entropy against torch's on whole scores."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

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


def test_labels_alone_decide_ties_as_argmax_does() -> None:
    weight, bias = torch.zeros(3, 2), torch.zeros(3)
    _, correct = linear_cross_entropy(torch.zeros(3, 2), weight, bias, torch.tensor([0, 1, 2]))
    assert correct == 1
