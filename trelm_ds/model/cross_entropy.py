"""Cross-entropy over the whole vocabulary that never holds the scores of all tokens at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Scores that are held at a time: 64 MiB of them in fp32. A chunk of fewer rows would starve the matrix products.
CHUNK_SCORES = 1 << 24


def linear_cross_entropy(
    states: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, chunk_scores: int = CHUNK_SCORES
) -> tuple[Tensor, Tensor]:
    """Sum the cross-entropy of scores `states weight^T + bias` against labels.

    The scores [M, V] are computed in chunks of rows, in the inputs' precision, and normalised in fp32. Gradients come
    out of the same pass, so the backward pass computes no scores again (Hsu et al. 2024, Liger kernels); it cannot be
    differentiated twice. Only those are computed that somebody wants: none under `no_grad`, none of frozen weights.

    Args:
        states: [M, D].
        weight: [V, D].
        bias: [V].
        labels: int64 [M].
        chunk_scores: how many scores to hold at a time, at least a row's.

    Returns:
        the sum, [] fp32, and how often the label scored highest, [] int64.
    """
    rows = max(1, chunk_scores // len(weight))
    loss, correct = _LinearCrossEntropy.apply(states, weight, bias, labels, rows, torch.is_grad_enabled())
    return loss, correct


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, rows: int, differentiated: bool
    ) -> tuple[Tensor, Tensor]:
        loss = states.new_zeros((), dtype=torch.float32)
        correct = labels.new_zeros(())
        # `needs_input_grad` is that of the inputs, also where nothing is differentiated.
        of_states, of_weight, of_bias = (differentiated and needed for needed in ctx.needs_input_grad[:3])
        state_gradient = torch.empty_like(states) if of_states else None
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if of_weight else None
        bias_gradient = torch.zeros_like(bias, dtype=torch.float32) if of_bias else None
        for first in range(0, len(states), rows):
            chunk, truth = states[first : first + rows], labels[first : first + rows, None]
            scores = F.linear(chunk, weight, bias).float()
            correct += (scores.argmax(-1, keepdim=True) == truth).sum()
            normaliser = scores.logsumexp(-1, keepdim=True)
            loss += (normaliser - scores.gather(1, truth)).sum()
            if not (of_states or of_weight or of_bias):
                continue
            gradient = scores.sub_(normaliser).exp_()  # softmax, less 1 at the label
            gradient.scatter_(1, truth, gradient.gather(1, truth) - 1)
            if bias_gradient is not None:
                bias_gradient += gradient.sum(0)
            gradient = gradient.to(states.dtype)
            if state_gradient is not None:
                torch.mm(gradient, weight, out=state_gradient[first : first + rows])
            if weight_gradient is not None:
                if weight.dtype == torch.float32:
                    weight_gradient.addmm_(gradient.t(), chunk)
                else:
                    weight_gradient += gradient.t() @ chunk
        ctx.save_for_backward(state_gradient, weight_gradient, bias_gradient)
        ctx.dtypes = states.dtype, weight.dtype, bias.dtype
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # In fp32: in half precision the factor, 1 / targets or so, would be off by up to 0.4% for all of a gradient.
        scaled = (
            None if gradient is None else (gradient.float() * loss_gradient).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )  # fmt: skip
        return *scaled, None, None, None
