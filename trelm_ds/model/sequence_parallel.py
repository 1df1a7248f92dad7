"""Sequence parallelism: between the cut parts of a layer, each of the ranks that share a model has its share of tokens.

Layer norms, dropout and residuals are computed once in t ranks instead of in each of them, and what activation
checkpointing keeps is a t-th (Korthikanti et al. 2022). Tokens are padded to a multiple of t. megatron-core's exchange
of tokens runs on CUDA only.
"""

from __future__ import annotations

import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.tensor_parallel import (
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)
from torch import Tensor, nn

from trelm_ds.model.partition import padded
from trelm_ds.model.regions import copy_to_region
from trelm_ds.model.shard_dropout import of_shard


class SequenceRegion:
    """Where the tokens of a batch are shared out, and where they come together again."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def enter(self, states: Tensor) -> Tensor:
        """Return this rank's rows [T' / t, D] of states [T, D] that all ranks have, T' the padded number of tokens."""
        missing = padded(len(states), self._group.size()) - len(states)
        scattered: Tensor = scatter_to_sequence_parallel_region(F.pad(states, (0, 0, 0, missing)), self._group)
        return scattered

    def leave(self, states: Tensor, tokens: int) -> Tensor:
        """Put the rows of all ranks together again: [T, D], the same on all of them."""
        gathered: Tensor = gather_from_sequence_parallel_region(states, False, self._group)
        return gathered[:tokens]


class SharedNorm(nn.LayerNorm):
    """LayerNorm of this rank's tokens; the gradients of its weights are those of all tokens."""

    def __init__(self, whole: nn.LayerNorm, group: dist.ProcessGroup) -> None:
        super().__init__(whole.normalized_shape, eps=whole.eps, device="meta")
        self.weight, self.bias, self._group = whole.weight, whole.bias, group

    def forward(self, states: Tensor) -> Tensor:
        """Normalise states [T' / t, D]."""
        weight, bias = (copy_to_region(one, self._group) for one in (self.weight, self.bias))
        return F.layer_norm(states, self.normalized_shape, weight, bias, self.eps)


class SharedDropout(nn.Dropout):
    """Dropout of this rank's tokens."""

    def __init__(self, whole: nn.Dropout, group: dist.ProcessGroup) -> None:
        super().__init__(whole.p)
        self._rank = group.rank()

    def forward(self, states: Tensor) -> Tensor:
        """Drop of states [T' / t, D]."""
        if not self.training or not self.p:
            return states
        with of_shard(self._rank, states.device):
            return super().forward(states)


def share_tokens(layer: nn.Module, group: dist.ProcessGroup) -> None:
    """Have what lies between the cut parts of an encoder layer computed for this rank's tokens, in place."""
    for name, part in list(layer.named_children()):
        if isinstance(part, nn.LayerNorm):
            setattr(layer, name, SharedNorm(part, group))
        elif isinstance(part, nn.Dropout):
            setattr(layer, name, SharedDropout(part, group))
