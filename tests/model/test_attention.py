"""Which kernel attends, and that the packed one is given what it needs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from trelm_ds.model.attention import Tail, packed_attention, packed_layout

LENGTHS = [5, 1, 9]


def loop(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: list[int]) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) v, document by document."""
    rows = []
    for first, last in itertools.pairwise(bounds):
        q, k, v = (part[first:last].transpose(0, 1) for part in (query, key, value))
        rows.append((torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, -1) @ v).transpose(0, 1))
    return torch.cat(rows)


def tensors(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(0)
    return tuple(torch.randn(15, 2, 8, generator=draw).to(dtype) for _ in range(3))


def test_padded_attention_equals_a_loop() -> None:
    bounds = torch.tensor([0, 5, 6, 15], dtype=torch.int32)
    actual = packed_attention(*tensors(), packed_layout(bounds, 9, 15))
    torch.testing.assert_close(actual, loop(*tensors(), bounds.tolist()))


@pytest.mark.parametrize(
    ("lengths", "tail"),
    [
        ([9, 5, 2, 1], Tail(2, 3, 2)),
        ([9, 9, 2, 2, 2], Tail(3, 6, 2)),  # nothing to pad in either
        ([7, 3, 3], Tail(2, 6, 5)),
        ([7, 3, 3], Tail(2, 6, 99)),  # said to be longer than the longest
        ([4, 6], Tail(0, 0, 0)),
        ([4, 6], Tail(2, 10, 6)),
    ],
)
def test_a_tail_of_short_documents_is_padded_by_itself(lengths: list[int], tail: Tail) -> None:
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    draw, total = torch.Generator().manual_seed(0), sum(lengths)
    results = []
    layouts = [packed_layout(bounds, max(lengths), total, given) for given in (None, tail)]
    data = [torch.randn(total, 2, 8, generator=draw) for _ in range(4)]
    for layout in layouts:
        inputs = [part.clone().requires_grad_() for part in data[:3]]
        attended = packed_attention(*inputs, layout)
        results.append((attended.detach(), *torch.autograd.grad((attended * data[3]).sum(), inputs)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(results[1][0], loop(*data[:3], bounds.tolist()))
    split = 0 < tail.documents < len(lengths)
    cells = sum(grid.documents * grid.length for grid in layouts[1].grids)
    head = (len(lengths) - tail.documents) * max(lengths)
    assert cells == (
        head + tail.documents * min(tail.max_seqlen, max(lengths)) if split else len(lengths) * max(lengths)
    )


class OnCuda(torch.Tensor):
    """Says that it lies on a GPU."""

    is_cuda = True


@pytest.mark.parametrize(
    ("dtype", "dropout", "packed"),
    [
        (torch.bfloat16, 0.0, True),
        (torch.float16, 0.0, True),
        (torch.float32, 0.0, False),
        (torch.bfloat16, 0.1, False),
    ],
)
def test_flash_attention_reads_packed_tokens(
    dtype: torch.dtype, dropout: float, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its arguments, on a stand-in: the kernel itself needs a GPU."""
    calls: list[tuple[Any, ...]] = []

    def kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *about: Any) -> torch.Tensor:
        calls.append(about)
        return query

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    bounds = torch.tensor([0, 5, 6, 15], dtype=torch.int32)
    parts = [part.as_subclass(OnCuda) for part in tensors(dtype)]
    packed_attention(*parts, packed_layout(bounds, 9, 15), dropout)
    if not packed:
        assert not calls
    else:
        (queries, keys, longest_query, longest_key) = calls[0]
        assert queries is bounds
        assert keys is bounds
        assert (longest_query, longest_key) == (9, 9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_flash_attention_equals_padded_attention_on_a_gpu() -> None:
    bounds = torch.tensor([0, 5, 6, 15], dtype=torch.int32, device="cuda")
    exact = [part.cuda() for part in tensors()]
    layout = packed_layout(bounds, 9, 15)
    expected = packed_attention(*exact, layout)
    actual = packed_attention(*(part.bfloat16() for part in exact), layout).float()
    torch.testing.assert_close(actual, expected, atol=0.03, rtol=0.03)
