"""Restricts the gradients of chosen neurons to chosen input or output coordinates (paper Eq. 12), in place."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_S, BLOCK_D = 4, 256


def reference(gradient: Tensor, rows: Tensor, kept: Tensor) -> Tensor:
    """`mask_columns` in plain torch."""
    chosen = gradient.index_select(0, rows)
    masked = torch.where(kept, chosen, 0)
    gradient.index_copy_(0, rows, masked)
    return torch.stack([masked.float().square().sum(), chosen.float().square().sum()])


@triton.jit
def mask_rows(gradient, rows, kept, partial, chosen, size, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr):
    """Sets what is not kept of a few rows to 0; squared norm of what is left, and of all there was."""
    s = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    row = tl.load(rows + s, mask=s < chosen, other=0)
    left, whole = tl.zeros((BLOCK_S, BLOCK_D), tl.float32), tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
    for first in range(0, size, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        inside = (s < chosen)[:, None] & (d < size)[None, :]
        keep = tl.load(kept + d, mask=d < size, other=0) != 0
        place = gradient + row[:, None] * size + d[None, :]
        value = tl.load(place, mask=inside, other=0.0)
        tl.store(place, tl.zeros_like(value), mask=inside & (keep == 0)[None, :])
        square = value.to(tl.float32) * value.to(tl.float32)
        whole += square
        left += tl.where(keep[None, :], square, 0.0)
    number = tl.program_id(0).to(tl.int64)
    tl.store(partial + 2 * number, tl.sum(left))
    tl.store(partial + 2 * number + 1, tl.sum(whole))


def launch(gradient: Tensor, rows: Tensor, kept: Tensor) -> Tensor:
    """`mask_columns` by the kernel."""
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
    """Sets the coordinates that are not kept to 0 in some rows of a gradient; the other rows are not looked at.

    Args:
        gradient: [F, D], contiguous; changed.
        rows: int64 [S], distinct.
        kept: bool [D].

    Returns:
        float32 [2]: squared norm of these rows after and before.
    """
    return reference(gradient, rows, kept)


mask_columns.register_kernel("cuda")(launch)


@mask_columns.register_fake
def _(gradient: Tensor, rows: Tensor, kept: Tensor) -> Tensor:
    return gradient.new_empty(2, dtype=torch.float32)
