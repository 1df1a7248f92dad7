"""Cross-entropy over the whole vocabulary that never holds the scores of all tokens at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Scores that are held at a time: 64 MiB of them in fp32. A chunk of fewer rows would starve the matrix products.
CHUNK_SCORES = 1 << 24


class VocabularyShard(NamedTuple):
    """Which words a rank scores under tensor parallelism."""

    first: int
    """the first of them"""
    group: dist.ProcessGroup
    """the ranks that score the others"""


def linear_cross_entropy(
    states: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    chunk_scores: int = CHUNK_SCORES,
    shard: VocabularyShard | None = None,
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
        shard: where weight and bias are those of a part of the vocabulary, of equal size on all ranks: which one. The
            results are those of the whole vocabulary; the gradient by the states is this rank's part of a sum.

    Returns:
        the sum, [] fp32, and how often the label scored highest, [] int64.
    """
    rows = max(1, chunk_scores // len(weight))
    loss, correct = _LinearCrossEntropy.apply(states, weight, bias, labels, rows, torch.is_grad_enabled(), shard)
    return loss, correct


class _Normalised(NamedTuple):
    """What the scores of a chunk of m rows come to, in the whole vocabulary."""

    normaliser: Tensor
    """[m, 1]: logarithm of the sum of exponentials"""
    best: Tensor
    """int64 [m, 1]: word with the highest score, the first of several"""
    of_label: Tensor
    """[m, 1]: the label's score"""
    place: Tensor
    """int64 [m, 1]: column of the label; of any column where this rank has not got it"""
    here: Tensor
    """[m, 1]: whether this rank has it, 1 or 0"""


def _normalise(scores: Tensor, labels: Tensor, shard: VocabularyShard | None) -> _Normalised:
    """Normalise scores [m, V] of labels [m, 1], or of this rank's shard of the words, collectively."""
    if shard is None:
        of_label = scores.gather(1, labels)
        normaliser, best = scores.logsumexp(-1, keepdim=True), scores.argmax(-1, keepdim=True)
        return _Normalised(normaliser, best, of_label, labels, torch.ones_like(of_label))
    own = labels - shard.first
    here = (own >= 0) & (own < scores.shape[1])
    place = own.masked_fill(~here, 0)
    highest, best = scores.max(-1, keepdim=True)
    overall = highest.clone()
    dist.all_reduce(overall, dist.ReduceOp.MAX, group=shard.group)
    best = (best + shard.first).masked_fill(highest < overall, torch.iinfo(torch.int64).max)
    dist.all_reduce(best, dist.ReduceOp.MIN, group=shard.group)
    summed = torch.cat([(scores - overall).exp().sum(-1, keepdim=True), scores.gather(1, place).where(here, 0.0)])
    dist.all_reduce(summed, group=shard.group)
    total, of_label = summed.chunk(2)
    return _Normalised(overall + total.log(), best, of_label, place, here.to(scores.dtype))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
        rows: int,
        differentiated: bool,
        shard: VocabularyShard | None,
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
            found = _normalise(scores, truth, shard)
            correct += (found.best == truth).sum()
            loss += (found.normaliser - found.of_label).sum()
            if not (of_states or of_weight or of_bias):
                continue
            gradient = scores.sub_(found.normaliser).exp_()  # softmax, less 1 at the label
            gradient.scatter_(1, found.place, gradient.gather(1, found.place) - found.here)
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
        return *scaled, None, None, None, None
