"""Which kernel attends, and that the packed one is given what it needs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from trelm_ds.model import attention
from trelm_ds.model.attention import packed_attention, packed_layout

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

    monkeypatch.setattr(attention, "varlen_attn", kernel)
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
