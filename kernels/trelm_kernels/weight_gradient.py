"""Weight gradients of a feed-forward layer for chosen neurons only, one row per neuron."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from trelm_kernels.interpreter import must_widen

BLOCK_S, BLOCK_D, BLOCK_T, WARPS = 64, 128, 32, 8
_PROGRAMS = 512  # several for each multiprocessor of an A100 or H100


def reference(
    left: Tensor, right: Tensor, rows: Tensor, neurons: int, with_bias: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute `path_weight_gradient` in plain torch."""
    weight = right.new_zeros(neurons, right.shape[1])
    left = left[:, : len(rows)]
    weight[rows] = left.t() @ right
    bias = right.new_zeros(neurons if with_bias else 0)
    if with_bias:
        bias[rows] = left.sum(0)
    return weight, bias


@triton.jit
def partial_products(
    left,
    right,
    partial_weight,
    partial_bias,
    tokens,
    size,
    chosen,
    left_stride,
    right_stride,
    tokens_per_split,
    WITH_BIAS: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Compute one tile of left^T right over one split of the tokens, in float32."""
    split = tl.program_id(2).to(tl.int64)
    s = tl.program_id(1) * BLOCK_S + tl.arange(0, BLOCK_S)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    begin = split * tokens_per_split
    end = tl.minimum(begin + tokens_per_split, tokens)
    weight = tl.zeros((BLOCK_S, BLOCK_D), dtype=tl.float32)
    bias = tl.zeros((BLOCK_S,), dtype=tl.float32)
    for start in range(begin, end, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T).to(tl.int64)
        inside = t < end
        a = tl.load(
            left + t[None, :] * left_stride + s[:, None], mask=inside[None, :] & (s < chosen)[:, None], other=0.0
        )
        b = tl.load(
            right + t[:, None] * right_stride + d[None, :], mask=inside[:, None] & (d < size)[None, :], other=0.0
        )
        if WIDEN:
            a, b = a.to(tl.float32), b.to(tl.float32)
        weight = tl.dot(a, b, weight, input_precision="ieee")
        if WITH_BIAS:
            bias += tl.sum(a.to(tl.float32), axis=1)
    row = split * chosen + s
    tl.store(
        partial_weight + row[:, None] * size + d[None, :], weight, mask=(s < chosen)[:, None] & (d < size)[None, :]
    )
    if WITH_BIAS:
        tl.store(partial_bias + row, bias, mask=(s < chosen) & (tl.program_id(0) == 0))


@triton.jit
def sum_splits(
    partial_weight,
    partial_bias,
    rows,
    weight,
    bias,
    size,
    chosen,
    splits,
    WITH_BIAS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sum the splits in a fixed order, so that results are deterministic, and write one neuron's row in place."""
    s = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    neuron = tl.load(rows + s)
    total = tl.zeros((BLOCK_D,), dtype=tl.float32)
    total_bias = 0.0
    for split in range(splits):
        row = split * chosen + s
        total += tl.load(partial_weight + row * size + d, mask=d < size, other=0.0)
        if WITH_BIAS:
            total_bias += tl.load(partial_bias + row)
    tl.store(weight + neuron * size + d, total, mask=d < size)
    if WITH_BIAS and tl.program_id(1) == 0:
        tl.store(bias + neuron, total_bias)


def launch(left: Tensor, right: Tensor, rows: Tensor, neurons: int, with_bias: bool = False) -> tuple[Tensor, Tensor]:
    """Compute `path_weight_gradient` with the kernels."""
    tokens, chosen, size, rows = len(left), len(rows), right.shape[1], rows.contiguous()
    left, right = (x if x.stride(1) == 1 else x.contiguous() for x in (left, right))
    weight = right.new_zeros(neurons, size)
    bias = right.new_zeros(neurons if with_bias else 0)
    if not (tokens and size and chosen):
        if with_bias and tokens and chosen:
            bias[rows] = left[:, :chosen].sum(0)
        return weight, bias
    tiles = triton.cdiv(size, BLOCK_D), triton.cdiv(chosen, BLOCK_S)
    splits = max(1, min(_PROGRAMS // (tiles[0] * tiles[1]), tokens // (8 * BLOCK_T)))
    tokens_per_split = BLOCK_T * triton.cdiv(triton.cdiv(tokens, splits), BLOCK_T)
    splits = triton.cdiv(tokens, tokens_per_split)
    partial_weight = right.new_empty(splits, chosen, size, dtype=torch.float32)
    partial_bias = right.new_empty(splits if with_bias else 0, chosen, dtype=torch.float32)
    partial_products[(*tiles, splits)](
        left,
        right,
        partial_weight,
        partial_bias,
        tokens,
        size,
        chosen,
        left.stride(0),
        right.stride(0),
        tokens_per_split,
        WITH_BIAS=with_bias,
        WIDEN=must_widen(partial_products, left.dtype),
        BLOCK_S=BLOCK_S,
        BLOCK_D=BLOCK_D,
        BLOCK_T=BLOCK_T,
        num_warps=WARPS,
        num_stages=3,
    )
    sum_splits[(chosen, tiles[0])](
        partial_weight,
        partial_bias,
        rows,
        weight,
        bias,
        size,
        chosen,
        splits,
        WITH_BIAS=with_bias,
        BLOCK_D=BLOCK_D,
        num_warps=1,
    )
    return weight, bias


@torch.library.custom_op("trelm::path_weight_gradient", mutates_args=(), device_types="cpu")
def path_weight_gradient(
    left: Tensor, right: Tensor, rows: Tensor, neurons: int, with_bias: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute left^T right in the rows of the chosen neurons; all other rows are 0.

    With left = gradients of the pre-activations and right = inputs, this is the gradient of a feed-forward layer's
    keys; with left = activations and right = gradients of the outputs, that of its values. The work is split over
    tokens; sums are float32.

    Args:
        left: [T, S], columns of the chosen neurons (see `activation_backward`); further columns are ignored.
        right: [T, D], same dtype.
        rows: int64 [S], chosen neurons, distinct, in 0 ... neurons - 1.
        neurons: number of neurons F.
        with_bias: also return the column sums of `left`.

    Returns:
        [F, D], and the column sums [F], 0 where not chosen; [0] without `with_bias`.
    """
    return reference(left, right, rows, neurons, with_bias)


path_weight_gradient.register_kernel("cuda")(launch)


@path_weight_gradient.register_fake
def _(left: Tensor, right: Tensor, rows: Tensor, neurons: int, with_bias: bool = False) -> tuple[Tensor, Tensor]:
    return right.new_empty(neurons, right.shape[1]), right.new_empty(neurons if with_bias else 0)
