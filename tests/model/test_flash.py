"""The flash attention op: its reference against autograd of a plain loop, its registration for compilers."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from trelm_ds.model import flash
from trelm_ds.model.flash import flash_attention

QUERIES, KEYS = torch.tensor([0, 2, 3, 7], dtype=torch.int32), torch.tensor([0, 5, 6, 15], dtype=torch.int32)


def inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(rows, 2, 8, generator=draw).to(dtype).requires_grad_() for rows in (7, 15, 15)]


def plain(query: Tensor, key: Tensor, value: Tensor, kept: list[Tensor] | None = None) -> Tensor:
    """Attend by torch's own operations; `kept`: dropout's factors by document."""
    rows = []
    pairs = zip(itertools.pairwise(QUERIES.tolist()), itertools.pairwise(KEYS.tolist()), strict=True)
    for number, ((first, last), (begin, end)) in enumerate(pairs):
        q = query[first:last].transpose(0, 1)
        k, v = (part[begin:end].transpose(0, 1) for part in (key, value))
        probabilities = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, -1)
        rows.append(((probabilities if kept is None else probabilities * kept[number]) @ v).transpose(0, 1))
    return torch.cat(rows)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_reference_and_its_gradients(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Tensor] = []
    documents = flash._documents

    def recorded(*arguments):  # type: ignore[no-untyped-def]
        for document in documents(*arguments):
            kept.append(document[4])
            yield document

    monkeypatch.setattr(flash, "_documents", recorded)
    given, weights = inputs(), torch.randn(7, 2, 8)
    output = flash_attention(*given, QUERIES, KEYS, 4, 9, dropout)
    gradients = torch.autograd.grad((output * weights).sum(), given)
    assert all(torch.equal(*pair) for pair in zip(kept[:3], kept[3:], strict=True))  # drawn once, the same in both
    assert any((factors == 0).any() for factors in kept) == (dropout > 0)
    exact = inputs()
    expected = plain(*exact, kept[:3])
    torch.testing.assert_close(output, expected)
    for ours, theirs in zip(gradients, torch.autograd.grad((expected * weights).sum(), exact), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_half_precision_comes_back_as_it_went_in() -> None:
    given = inputs(torch.bfloat16)
    output = flash_attention(*given, QUERIES, KEYS, 4, 9)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), plain(*inputs()), atol=0.03, rtol=0.03)
    assert all(part.dtype == torch.bfloat16 for part in torch.autograd.grad(output.sum(), given))


def test_compilers_can_take_it() -> None:
    torch.library.opcheck(flash._forward, (*inputs(), QUERIES, KEYS, 4, 9, 0.0))


def test_the_deterministic_kernel_is_asked_for_and_only_there() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    with flash._deterministic():
        assert torch.are_deterministic_algorithms_enabled()
        # Told to warn only, ATen's flash attention warns and adds up in any order (attention_backward.cu).
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
