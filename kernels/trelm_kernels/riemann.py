"""Attribution scores of a layer's neurons from gradients at quadrature nodes (paper Eq. 11)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_T, BLOCK_F, BLOCK_D = 32, 64, 32
SPLIT = 8 * BLOCK_T  # target positions summed by one program


def reference(gradients: Tensor, weights: Tensor, values: Tensor, activations: Tensor) -> Tensor:
    """Compute `riemann_scores` in plain torch."""
    mean = torch.einsum("k,ktd->td", weights, gradients.float())
    attribution = activations.float() * (mean @ values.float().t())
    return attribution.clamp(min=0).sum(0)


@triton.jit
def partial_scores(
    gradients,
    weights,
    values,
    activations,
    partial,
    targets,
    neurons,
    size,
    nodes,
    TARGETS_PER_SPLIT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sum max(activation * (node-weighted gradient . values), 0) per neuron over one split of the targets."""
    f = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    begin = tl.program_id(1).to(tl.int64) * TARGETS_PER_SPLIT
    scores = tl.zeros((BLOCK_F,), dtype=tl.float32)
    for start in range(0, TARGETS_PER_SPLIT, BLOCK_T):
        t = begin + start + tl.arange(0, BLOCK_T)
        product = tl.zeros((BLOCK_T, BLOCK_F), dtype=tl.float32)
        for first in range(0, size, BLOCK_D):
            d = first + tl.arange(0, BLOCK_D)
            inside = (t < targets)[:, None] & (d < size)[None, :]
            mean = tl.zeros((BLOCK_T, BLOCK_D), dtype=tl.float32)
            for node in tl.range(nodes, num_stages=1):
                gradient = tl.load(
                    gradients + (node * targets + t)[:, None] * size + d[None, :], mask=inside, other=0.0
                )
                mean += tl.load(weights + node) * gradient.to(tl.float32)
            value = tl.load(
                values + f[None, :].to(tl.int64) * size + d[:, None],
                mask=(d < size)[:, None] & (f < neurons)[None, :],
                other=0.0,
            )
            product = tl.dot(mean, value.to(tl.float32), product, input_precision="ieee")
        activation = tl.load(
            activations + t[:, None] * neurons + f[None, :],
            mask=(t < targets)[:, None] & (f < neurons)[None, :],
            other=0.0,
        )
        attribution = activation.to(tl.float32) * product
        scores += tl.sum(tl.maximum(attribution, 0.0, propagate_nan=tl.PropagateNan.ALL), axis=0)
    tl.store(partial + tl.program_id(1).to(tl.int64) * neurons + f, scores, mask=f < neurons)


def launch(gradients: Tensor, weights: Tensor, values: Tensor, activations: Tensor) -> Tensor:
    """Compute `riemann_scores` with the kernel."""
    nodes, targets, size = gradients.shape
    neurons, splits = len(values), triton.cdiv(targets, SPLIT)
    if not (targets and neurons):
        return values.new_zeros(neurons, dtype=torch.float32)
    partial = values.new_empty(splits, neurons, dtype=torch.float32)
    partial_scores[(triton.cdiv(neurons, BLOCK_F), splits)](
        gradients.contiguous(),
        weights.contiguous(),
        values.contiguous(),
        activations.contiguous(),
        partial,
        targets,
        neurons,
        size,
        nodes,
        TARGETS_PER_SPLIT=SPLIT,
        BLOCK_T=BLOCK_T,
        BLOCK_F=BLOCK_F,
        BLOCK_D=BLOCK_D,
        num_warps=4,
    )
    return partial.sum(0)


@torch.library.custom_op("trelm::riemann_scores", mutates_args=(), device_types="cpu")
def riemann_scores(gradients: Tensor, weights: Tensor, values: Tensor, activations: Tensor) -> Tensor:
    """Sum max(Attr, 0) of Eq. 11 over the target positions, for every neuron.

    A feed-forward layer is linear after its activation, so the sum over nodes comes before the product with the values:
    Attr = activations * ((sum over k of weights[k] gradients[k]) values^T). The kernel never materializes an [m, T, F]
    or a further [T, F] tensor.

    Args:
        gradients: [m, T, D], gradient of the probability with respect to the layer's output, at each node and target.
        weights: float32 [m], quadrature weights.
        values: [F, D], values of the feed-forward layer.
        activations: [T, F], activations at alpha = 1.

    Returns:
        float32 [F].
    """
    return reference(gradients, weights, values, activations)


riemann_scores.register_kernel("cuda")(launch)


@riemann_scores.register_fake
def _(gradients: Tensor, weights: Tensor, values: Tensor, activations: Tensor) -> Tensor:
    return values.new_empty(len(values), dtype=torch.float32)
