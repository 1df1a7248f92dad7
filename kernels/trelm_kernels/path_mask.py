"""Restriction of chosen neurons' gradients to chosen input or output coordinates (paper Eq. 12), in place."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_S, BLOCK_D = 4, 256


def reference(gradient: Tensor, rows: Tensor, kept: Tensor) -> Tensor:
    """Compute `mask_columns` in plain torch."""
    chosen = gradient.index_select(0, rows)
    masked = torch.where(kept, chosen, 0)
    gradient.index_copy_(0, rows, masked)
    return torch.stack([masked.float().square().sum(), chosen.float().square().sum()])


@triton.jit
def mask_rows(gradient, rows, kept, partial, chosen, size, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr):
    """Zero the coordinates of BLOCK_S rows that are not kept; store the rows' squared norm after and before."""
    s = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    row = tl.load(rows + s, mask=s < chosen, other=0)
    after, before = tl.zeros((BLOCK_S, BLOCK_D), tl.float32), tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
    for first in range(0, size, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        inside = (s < chosen)[:, None] & (d < size)[None, :]
        keep = tl.load(kept + d, mask=d < size, other=0) != 0
        pointers = gradient + row[:, None] * size + d[None, :]
        value = tl.load(pointers, mask=inside, other=0.0)
        tl.store(pointers, tl.zeros_like(value), mask=inside & (keep == 0)[None, :])
        square = value.to(tl.float32) * value.to(tl.float32)
        before += square
        after += tl.where(keep[None, :], square, 0.0)
    program = tl.program_id(0).to(tl.int64)
    tl.store(partial + 2 * program, tl.sum(after))
    tl.store(partial + 2 * program + 1, tl.sum(before))


def launch(gradient: Tensor, rows: Tensor, kept: Tensor) -> Tensor:
    """Compute `mask_columns` with the kernel."""
    if not gradient.is_contiguous():
        raise ValueError("gradient: must be contiguous, it is changed in place")
    chosen = len(rows)
    programs = triton.cdiv(chosen, BLOCK_S)
    partial = gradient.new_zeros(programs, 2, dtype=torch.float32)
    if chosen:
        flags = kept.to(torch.uint8)
        mask_rows[(programs,)](
            gradient,
            rows.contiguous(),
            flags,
            partial,
            chosen,
            gradient.shape[1],
            BLOCK_S=BLOCK_S,
            BLOCK_D=BLOCK_D,
            num_warps=4,
        )
    return partial.sum(0)


@torch.library.custom_op("trelm::mask_columns", mutates_args=("gradient",), device_types="cpu")
def mask_columns(gradient: Tensor, rows: Tensor, kept: Tensor) -> Tensor:
    """Zero the coordinates that are not kept in some rows of a gradient, in place; other rows are not touched.

    Args:
        gradient: [F, D], contiguous; modified.
        rows: int64 [S], rows to mask, distinct.
        kept: bool [D], coordinates to keep.

    Returns:
        float32 [2]: squared norm of these rows after and before.
    """
    return reference(gradient, rows, kept)


mask_columns.register_kernel("cuda")(launch)


@mask_columns.register_fake
def _(gradient: Tensor, rows: Tensor, kept: Tensor) -> Tensor:
    return gradient.new_empty(2, dtype=torch.float32)
