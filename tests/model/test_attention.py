"""Which kernel attends, and that the packed one is given what it needs."""

from __future__ import annotations

import itertools

import pytest
import torch

from trelm_ds.model.attention import Tail, packed_attention, packed_layout
from trelm_ds.model.flash import has_flash_attention

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
    ("dtype", "size", "capability", "packed"),
    [
        (torch.bfloat16, 8, (8, 0), True),
        (torch.float16, 8, (12, 0), True),
        (torch.float32, 8, (9, 0), False),
        (torch.float16, 8, (7, 5), False),
        (torch.bfloat16, 4, (9, 0), False),
        (torch.bfloat16, 192, (8, 6), True),
        (torch.bfloat16, 200, (8, 6), False),
    ],
)
def test_flash_attention_where_there_is_one(
    dtype: torch.dtype, size: int, capability: tuple[int, int], packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)
    query = torch.zeros(1, 1, size, dtype=dtype)
    assert not has_flash_attention(query)
    assert has_flash_attention(query.as_subclass(OnCuda)) == packed


def test_packed_attention_takes_it_with_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stand-in for the kernel, its reference: only a GPU runs the kernel itself."""
    monkeypatch.setattr("trelm_ds.model.attention.has_flash_attention", lambda _: True)
    bounds = torch.tensor([0, 5, 6, 15], dtype=torch.int32)
    layout = packed_layout(bounds, 9, 15)
    torch.testing.assert_close(packed_attention(*tensors(), layout), loop(*tensors(), bounds.tolist()))
    torch.manual_seed(0)
    dropped = packed_attention(*tensors(), layout, 0.5)
    torch.manual_seed(0)
    assert torch.equal(packed_attention(*tensors(), layout, 0.5), dropped)
    assert not torch.allclose(packed_attention(*tensors(), layout, 0.5), dropped)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_flash_attention_equals_padded_attention_on_a_gpu(dropout: float) -> None:
    """With dropout, on average; values, which are all 1, come out as 1 on average."""
    bounds = torch.tensor([0, 5, 6, 15], dtype=torch.int32, device="cuda")
    exact = [part.cuda() for part in tensors()]
    layout = packed_layout(bounds, 9, 15)
    expected = packed_attention(*exact, layout)
    halves = [part.bfloat16().requires_grad_() for part in exact]
    passes = torch.stack([packed_attention(*halves, layout, dropout) for _ in range(4000 if dropout else 1)])
    torch.testing.assert_close(passes.float().mean(0), expected, atol=0.1 if dropout else 0.03, rtol=0.03)
    first, second = (torch.autograd.grad(passes[0].sum(), halves, retain_graph=True) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
