"""Flash attention of packed documents with dropout, one op with a CPU reference; torch's public one has no dropout."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)
_FIRST_CAPABILITY = (8, 0)  # of FlashAttention-2
_planned = False
_LARGEST_HEAD = 192  # the backward pass of larger ones does not run on every GPU (8.6, 8.9, 12.0)


def has_flash_attention(query: Tensor) -> bool:
    """Tell whether the kernel can attend for these queries [Q, H, d]: their device, number format and head size."""
    size = query.shape[-1]
    if query.dtype not in _HALF or size % 8 or size > _LARGEST_HEAD:
        return False
    if not query.is_cuda:
        return _planned
    return torch.cuda.get_device_capability(query.device) >= _FIRST_CAPABILITY


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Attend on the CPU as a GPU would, for planning: its tensors have no values, and no kernel runs."""
    global _planned
    _planned = True
    try:
        yield
    finally:
        _planned = False


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_bounds: Tensor,
    key_bounds: Tensor,
    max_query: int,
    max_key: int,
    dropout_p: float = 0.0,
) -> Tensor:
    """Compute softmax(query key^T / sqrt(d)) value within each of B documents, with dropout on the probabilities.

    On CUDA this is FlashAttention-2 (Dao 2023) in its deterministic form, elsewhere `attend` below. Dropout draws from
    the device's random generator, so that the same seed gives the same result.

    Args:
        query: [Q, H, d].
        key, value: [T, H, d].
        query_bounds, key_bounds: int32 [B + 1], where each document begins.
        max_query, max_key: at least the longest of them.
        dropout_p: probability of dropping.

    Returns:
        [Q, H, d].
    """
    output: Tensor = _forward(query, key, value, query_bounds, key_bounds, max_query, max_key, dropout_p)[0]
    return output


@torch.library.custom_op("trelm::flash_attention", mutates_args=())
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_bounds: Tensor,
    key_bounds: Tensor,
    max_query: int,
    max_key: int,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend; return output, the logarithms of the sums of exponentials [H, Q] fp32, and dropout's state, int64 [2]."""
    if not query.is_cuda:
        seed = torch.randint(1 << 62, (2,)) if dropout_p else torch.zeros(2, dtype=torch.int64)
        return *attend(query, key, value, query_bounds, key_bounds, dropout_p, int(seed[0])), seed
    output, sums, state, _, _ = torch.ops.aten._flash_attention_forward(
        query, key, value, query_bounds, key_bounds, max_query, max_key, dropout_p, False, False
    )
    return output, sums, state.view(torch.int64)


@_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *about: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows, heads, _ = query.shape
    sums = query.new_empty((heads, rows), dtype=torch.float32)
    return query.new_empty(query.shape), sums, query.new_empty((2,), dtype=torch.int64)


@torch.library.custom_op("trelm::flash_attention_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    sums: Tensor,
    state: Tensor,
    query_bounds: Tensor,
    key_bounds: Tensor,
    max_query: int,
    max_key: int,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of queries, keys and values."""
    if not query.is_cuda:
        bounds = query_bounds, key_bounds
        return attend_backward(gradient, query, key, value, output, sums, *bounds, dropout_p, int(state[0]))
    with _deterministic():
        gradients = torch.ops.aten._flash_attention_backward(
            gradient.contiguous(),
            query,
            key,
            value,
            output,
            sums,
            query_bounds,
            key_bounds,
            max_query,
            max_key,
            dropout_p,
            False,
            state.view(torch.uint64),
            state.new_empty(0),
        )
    of_query, of_key, of_value = gradients
    return of_query, of_key, of_value


@_backward.register_fake
def _(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *about: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    query, key, value, query_bounds, key_bounds, *ctx.numbers = inputs
    ctx.save_for_backward(query, key, value, *output, query_bounds, key_bounds)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 8
    return *_backward(gradient, *ctx.saved_tensors, *ctx.numbers), None, None, None, None, None


_forward.register_autograd(_gradients, setup_context=_save)


@contextmanager
def _deterministic() -> Iterator[None]:
    """Have ATen take the kernel that adds up in a fixed order: a continued run must equal an undisturbed one.

    With `warn_only` ATen would warn, and take the other one.
    """
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # the kernel writes all that it allocates
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        memory.fill_uninitialized_memory = fills


# --- Reference ---
def attend(
    query: Tensor, key: Tensor, value: Tensor, query_bounds: Tensor, key_bounds: Tensor, dropout_p: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Attend document by document in fp32; return the output [Q, H, d] and the logarithms of the sums [H, Q]."""
    output, sums = torch.empty_like(query), query.new_empty(query.shape[1], len(query), dtype=torch.float32)
    for rows, q, k, v, kept in _documents(query, key, value, query_bounds, key_bounds, dropout_p, seed):
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        sums[:, rows] = scores.logsumexp(-1)
        output[rows] = ((scores.softmax(-1) * kept) @ v).transpose(0, 1).to(query.dtype)
    return output, sums


def attend_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    sums: Tensor,
    query_bounds: Tensor,
    key_bounds: Tensor,
    dropout_p: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of `attend` with respect to queries, keys and values (Dao 2023, section 2.2)."""
    gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    last = key_bounds.tolist()
    documents = _documents(query, key, value, query_bounds, key_bounds, dropout_p, seed)
    for number, (rows, q, k, v, kept) in enumerate(documents):
        given, made = (part[rows].transpose(0, 1).float() for part in (gradient, output))
        scale = q.shape[-1] ** -0.5
        probabilities = (q @ k.transpose(1, 2) * scale - sums[:, rows, None]).exp()
        of_value = (probabilities * kept).transpose(1, 2) @ given
        of_probabilities = (given @ v.transpose(1, 2)) * kept
        of_scores = probabilities * (of_probabilities - (given * made).sum(-1, keepdim=True)) * scale
        others = slice(last[number], last[number + 1])
        for whole, place, part in (
            (gradients[0], rows, of_scores @ k),
            (gradients[1], others, of_scores.transpose(1, 2) @ q),
            (gradients[2], others, of_value),
        ):
            whole[place] = part.transpose(0, 1).to(whole.dtype)
    return gradients


def _documents(
    query: Tensor, key: Tensor, value: Tensor, query_bounds: Tensor, key_bounds: Tensor, dropout_p: float, seed: int
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]]:
    """Yield every document's rows among the queries; q, k and v [H, ., d] fp32; and dropout's factors [H, q, k]."""
    draw = torch.Generator().manual_seed(seed)
    for (first, last), (begin, end) in zip(
        itertools.pairwise(query_bounds.tolist()), itertools.pairwise(key_bounds.tolist()), strict=True
    ):
        q = query[first:last].transpose(0, 1).float()
        k, v = (part[begin:end].transpose(0, 1).float() for part in (key, value))
        kept = torch.rand(len(q), last - first, end - begin, generator=draw) >= dropout_p
        yield slice(first, last), q, k, v, kept / (1 - dropout_p)
