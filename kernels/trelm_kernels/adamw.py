"""AdamW that updates only elements whose gradient is not exactly 0; all others keep weight and moments unchanged."""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
_PIECE = 64  # elements per piece in the reference, which skips pieces without a gradient
MAX_STEPS = torch.iinfo(torch.int16).max  # the update counter saturates here


@lru_cache(maxsize=8)
def bias_corrections(beta1: float, beta2: float, device: torch.device) -> Tensor:
    """Tabulate 1 - beta1^n and sqrt(1 - beta2^n) for n = 0 ... MAX_STEPS updates.

    Computed in float64: in float32, 1 - beta^n would lose four digits for beta 0.999 and n = 1.

    Returns:
        float32 [2, MAX_STEPS + 1].
    """
    n = torch.arange(MAX_STEPS + 1, dtype=torch.float64)
    first, second = (-torch.expm1(n * torch.log(torch.tensor(beta, dtype=torch.float64))) for beta in (beta1, beta2))
    return torch.stack([first, second.sqrt()]).float().to(device)


def reference(
    weight: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    updates: Tensor,
    corrections: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """Compute `lazy_adamw` in plain torch."""
    flat = [tensor.view(-1) for tensor in (weight, exp_avg, exp_avg_sq, updates)]
    gradients, whole = gradient.reshape(-1), weight.numel() // _PIECE * _PIECE
    for first, last, width in ((0, whole, _PIECE), (whole, weight.numel(), 1)):
        g_pieces, *pieces = (tensor[first:last].view(-1, width) for tensor in (gradients, *flat))
        busy = g_pieces.ne(0).any(1).nonzero()[:, 0]  # read the other tensors only where a gradient is
        before = [piece[busy] for piece in pieces]
        g = g_pieces[busy].float()
        w, m, v = (tensor.float() for tensor in before[:3])
        n = torch.where(before[3] < MAX_STEPS, before[3] + 1, before[3])
        m = torch.lerp(m, g, 1 - beta1)
        v = (beta2 * v).addcmul_(g, g, value=1 - beta2)
        first_correction, second_correction = corrections[:, n.long()]
        w = (1 - lr * weight_decay) * w - lr / first_correction * (m / (v.sqrt() / second_correction + eps))
        for piece, old, new in zip(pieces, before, (w, m, v, n), strict=True):
            piece[busy] = torch.where(g != 0, new.to(old.dtype), old)


@triton.jit
def update_blocks(
    weight,
    gradient,
    exp_avg,
    exp_avg_sq,
    updates,
    corrections,
    size,
    lr,
    decay,
    beta1,
    beta2,
    eps,
    LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Update one block; a block without any gradient reads nothing else."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(gradient + i, mask=i < size, other=0.0).to(tl.float32)
    acts = g != 0.0
    if tl.max(acts.to(tl.int32), axis=0) != 0:
        w = tl.load(weight + i, mask=acts, other=0.0).to(tl.float32)
        m = tl.load(exp_avg + i, mask=acts, other=0.0).to(tl.float32)
        v = tl.load(exp_avg_sq + i, mask=acts, other=0.0).to(tl.float32)
        n = tl.minimum(tl.load(updates + i, mask=acts, other=0).to(tl.int32) + 1, LAST)
        m += (1.0 - beta1) * (g - m)
        v = beta2 * v + (1.0 - beta2) * g * g
        first = tl.load(corrections + n, mask=acts, other=1.0)
        second = tl.load(corrections + (LAST + 1) + n, mask=acts, other=1.0)
        w = w * decay - lr / first * (m / (tl.sqrt_rn(v) / second + eps))
        tl.store(weight + i, w, mask=acts)
        tl.store(exp_avg + i, m, mask=acts)
        tl.store(exp_avg_sq + i, v, mask=acts)
        tl.store(updates + i, n.to(tl.int16), mask=acts)


def launch(
    weight: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    updates: Tensor,
    corrections: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """Compute `lazy_adamw` with the kernel."""
    size = weight.numel()
    if not size:
        return
    if not all(tensor.is_contiguous() for tensor in (weight, exp_avg, exp_avg_sq, updates)):
        raise ValueError("weight, moments, updates: must be contiguous, they are changed in place")
    update_blocks[(triton.cdiv(size, BLOCK),)](
        weight,
        gradient.contiguous(),
        exp_avg,
        exp_avg_sq,
        updates,
        corrections,
        size,
        lr,
        1 - lr * weight_decay,
        beta1,
        beta2,
        eps,
        LAST=MAX_STEPS,
        BLOCK=BLOCK,
        num_warps=4,
    )


@torch.library.custom_op(
    "trelm::lazy_adamw", mutates_args=("weight", "exp_avg", "exp_avg_sq", "updates"), device_types="cpu"
)
def lazy_adamw(
    weight: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    updates: Tensor,
    corrections: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """Update every element whose gradient is not exactly 0 with AdamW (decoupled weight decay), in place.

    Bias correction uses the element's own number of updates, so a row that joins the path late starts like a fresh one.
    With the global step, its first updates would be several times too large: its moments start at 0 when the correction
    has long faded.

    Args:
        weight: any shape, contiguous.
        gradient: same shape.
        exp_avg, exp_avg_sq: same shape, contiguous: first and second moment.
        updates: int16, same shape, contiguous: updates so far; saturates at MAX_STEPS.
        corrections: `bias_corrections` for the two betas, on the same device.
        lr, beta1, beta2, eps, weight_decay: AdamW's hyperparameters.
    """
    reference(weight, gradient, exp_avg, exp_avg_sq, updates, corrections, lr, beta1, beta2, eps, weight_decay)


lazy_adamw.register_kernel("cuda")(launch)


@lazy_adamw.register_fake
def _(
    weight: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    updates: Tensor,
    corrections: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    return None
