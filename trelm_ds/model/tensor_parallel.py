"""Tensor parallelism: a model of which every rank has its heads, its neurons and its words (megatron-core).

`cut_model` turns a whole model into a rank's part of it: layers of megatron-core stand in the places of
those that are cut, with the same names of parameters. Everything else, layer norms above all, is the same on all ranks,
and so are the states between two halves of a layer.

Only this file and `regions` import megatron-core, and only runs with `model.tensor_parallel` above 1 import them.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import ModelParallelConfig
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    gather_from_sequence_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
    vocab_parallel_cross_entropy,
)
from torch import Tensor, nn

from trelm_ds.distributed import join_parts
from trelm_ds.model.attention import QueryKeyValue
from trelm_ds.model.cross_entropy import VocabularyShard, linear_cross_entropy
from trelm_ds.model.encoder import WordEmbedding
from trelm_ds.model.encoder_config import EncoderConfig
from trelm_ds.model.feed_forward import KeyValueFeedForward
from trelm_ds.model.masked_lm import MaskedLanguageModel
from trelm_ds.model.partition import Partition, cut, padded
from trelm_ds.model.regions import copy_to_region, reduce_from_region
from trelm_ds.model.sequence_parallel import SequenceRegion, share_tokens


def cut_model(model: MaskedLanguageModel, group: dist.ProcessGroup, sequence_parallel: bool) -> None:
    """Cut a whole model to this rank's part, in place; it may be on device meta.

    Args:
        model: with heads and neurons that the t ranks of the group divide.
        group: megatron-core's tensor-parallel group.
        sequence_parallel: share the tokens between the layers' halves out, too.
    """
    embeddings = model.encoder.embeddings
    embeddings.word = ParallelWordEmbedding(embeddings.word, group)
    for layer in model.encoder.blocks:
        attention = layer.attention
        attention.qkv = ParallelQueryKeyValue(attention.qkv, group, sequence_parallel)
        attention.output = ParallelOutput(attention.output, group, sequence_parallel)
        attention.shard = group.rank()
        layer.feed_forward = ParallelFeedForward(model.config, layer.feed_forward, group, sequence_parallel)
        if sequence_parallel:
            share_tokens(layer, group)
    if sequence_parallel:
        model.encoder.sequence_region = SequenceRegion(group)


def _settings(group: dist.ProcessGroup, sequence_parallel: bool = False) -> ModelParallelConfig:
    """Return megatron-core's settings; weights are ours, so it need not make any."""
    return ModelParallelConfig(
        tensor_model_parallel_size=group.size(),
        sequence_parallel=sequence_parallel,
        perform_initialization=False,
        use_cpu_initialization=True,
    )


def _own(weight: Tensor, partition: Partition, group: dist.ProcessGroup) -> nn.Parameter:
    """Make the parameter of this rank's part of a weight."""
    part = cut(weight.detach(), partition, group.rank(), group.size())
    return nn.Parameter(part.clone(), requires_grad=weight.requires_grad)


def _never(weight: Tensor) -> None:
    raise AssertionError("megatron-core is to make no weights")


class _WithoutExtraState(nn.Module):
    """Keeps megatron-core's empty "_extra_state" out of state dicts, in which ours have only weights."""

    get_extra_state, set_extra_state = nn.Module.get_extra_state, nn.Module.set_extra_state

    def register_load_state_dict_pre_hook(self, *_: Any, **__: Any) -> None:
        """Ignore the hook that would expect one."""

    _register_load_state_dict_pre_hook = register_load_state_dict_pre_hook


class ParallelQueryKeyValue(_WithoutExtraState, ColumnParallelLinear):
    """`QueryKeyValue` of this rank's H / t heads: weight [3D / t, D], bias [3D / t].

    Under sequence parallelism it is given this rank's tokens, and computes those of all ranks, padding too.
    """

    tp_group: dist.ProcessGroup

    def __init__(self, whole: QueryKeyValue, group: dist.ProcessGroup, sequence_parallel: bool) -> None:
        size, settings = whole.in_features, _settings(group, sequence_parallel)
        with torch.device("meta"):
            super().__init__(size, 3 * size, config=settings, init_method=_never, tp_group=group)
        self.heads, self.head_size = whole.heads // group.size(), size // whole.heads
        self.weight = _own(whole.weight, Partition(0, blocks=3), group)
        self.bias = _own(whole.bias, Partition(0, blocks=3), group)

    def forward(self, hidden: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Project states [T, D] to queries, keys and values [T, H / t, d]; with `rows` [Q, D], to queries of those."""
        if rows is None:
            projected, _ = super().forward(hidden)
            query, key, value = projected.view(-1, 3, self.heads, self.head_size).unbind(1)
            return query, key, value
        size = self.heads * self.head_size
        hidden, rows = (copy_to_region(states, self.tp_group) for states in (hidden, rows))
        query = F.linear(rows, self.weight[:size], self.bias[:size])
        others = F.linear(hidden, self.weight[size:], self.bias[size:]).view(-1, 2, self.heads, self.head_size)
        key, value = others.unbind(1)
        return query.view(-1, self.heads, self.head_size), key, value


class ParallelOutput(_WithoutExtraState, RowParallelLinear):
    """Attention's output projection from this rank's heads: weight [D, D / t], bias [D] on all ranks."""

    tp_group: dist.ProcessGroup

    def __init__(self, whole: nn.Linear, group: dist.ProcessGroup, sequence_parallel: bool) -> None:
        with torch.device("meta"):
            super().__init__(
                whole.in_features,
                whole.out_features,
                config=_settings(group, sequence_parallel),
                init_method=_never,
                bias=True,
                input_is_parallel=True,
                skip_bias_add=True,
                tp_group=group,
            )
        self.weight = _own(whole.weight, Partition(1), group)
        self.bias = nn.Parameter(whole.bias.detach(), requires_grad=whole.bias.requires_grad)

    def forward(self, attended: Tensor) -> Tensor:
        """Project [T, D / t] -> [T, D], the same on all ranks; under sequence parallelism, to this rank's tokens."""
        projected, bias = super().forward(attended)
        return cast(Tensor, projected + (copy_to_region(bias, self.tp_group) if self.sequence_parallel else bias))


class ParallelFeedForward(KeyValueFeedForward):
    """`KeyValueFeedForward` of this rank's F / t neurons; their `path` is of these, counted from 0."""

    def __init__(
        self, config: EncoderConfig, whole: KeyValueFeedForward, group: dist.ProcessGroup, sequence_parallel: bool
    ) -> None:
        with torch.device("meta"):
            super().__init__(config)
        self._group, self._shares_tokens = group, sequence_parallel
        for name in ("keys", "key_bias", "values"):
            setattr(self, name, _own(getattr(whole, name), Partition(0), group))
        self.value_bias = nn.Parameter(whole.value_bias.detach(), requires_grad=whole.value_bias.requires_grad)
        self.own = range(len(self.keys) * group.rank(), len(self.keys) * (group.rank() + 1))

    def forward(self, hidden: Tensor) -> Tensor:
        """Transform hidden states [T, D] -> [T, D], the same on all ranks; or those of this rank's tokens."""
        if not self._shares_tokens:
            return self.summed(self._feed(copy_to_region(hidden, self._group), None)) + self.value_bias
        together = gather_from_sequence_parallel_region(hidden, True, self._group)
        own = reduce_scatter_to_sequence_parallel_region(self._feed(together, None), self._group)
        return cast(Tensor, own + copy_to_region(self.value_bias, self._group))

    def summed(self, partial: Tensor) -> Tensor:
        """Sum over the ranks what each one's neurons contribute."""
        return reduce_from_region(partial, self._group)


class ParallelWordEmbedding(VocabParallelEmbedding):
    """`WordEmbedding` of this rank's words: weight [V' / t, D], where V' is V padded to a multiple of t.

    The bias of the decoder is whole on all ranks; each uses its words' part. Padding scores minus infinity.
    """

    def __init__(self, whole: WordEmbedding, group: dist.ProcessGroup) -> None:
        words, size = whole.num_embeddings, whole.embedding_dim
        with torch.device("meta"):
            rows = padded(words, group.size())
            super().__init__(rows, size, config=_settings(group), init_method=_never, tp_group=group)
        self.num_embeddings, self.padding_idx = words, whole.padding_idx
        self.shard = VocabularyShard(self.vocab_start_index, group)
        self.weight = _own(whole.weight, Partition(0), group)

    def forward(
        self, inputs: Tensor, vocabulary_bias: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Look up, score or compute the cross-entropy of scores, as `WordEmbedding` does.

        Scores are those of all words on every rank, and without gradients: no loss is computed from them.
        """
        if vocabulary_bias is None:
            return self._look_up(inputs)
        if labels is None:
            return self._all_scores(inputs, vocabulary_bias)
        states, bias = copy_to_region(inputs, self.tp_group), self._own_bias(vocabulary_bias)
        return linear_cross_entropy(states, self.weight, bias, labels, shard=self.shard)

    @torch.no_grad()
    def _all_scores(self, states: Tensor, bias: Tensor) -> Tensor:
        own = F.linear(states, self.weight, self._own_bias(bias))
        return join_parts(own, self.tp_group, dimension=1)[:, : self.num_embeddings]

    def probabilities(self, states: Tensor, vocabulary_bias: Tensor, labels: Tensor) -> Tensor:
        """Compute the labels' probabilities, as `WordEmbedding` does."""
        states, bias = copy_to_region(states, self.tp_group), self._own_bias(vocabulary_bias)
        scores = F.linear(states, self.weight, bias).float()
        return cast(Tensor, torch.exp(-vocab_parallel_cross_entropy(scores, labels)))

    def _look_up(self, ids: Tensor) -> Tensor:
        """Look up token ids [...] -> [..., D]; megatron-core's own look-up would make the host wait for a GPU."""
        own = (ids >= self.vocab_start_index) & (ids < self.vocab_end_index)
        if self.padding_idx is not None:  # its row is zeros, and learns from no look-up
            own &= ids != self.padding_idx
        places = (ids - self.vocab_start_index).masked_fill(~own, 0)
        found = F.embedding(places, self.weight).masked_fill(~own[..., None], 0)
        return reduce_from_region(found, self.tp_group)

    def _own_bias(self, bias: Tensor) -> Tensor:
        """Return this rank's part [V' / t] of a bias [V]; its gradient is whole on all ranks."""
        bias = copy_to_region(bias, self.tp_group)[self.vocab_start_index : self.vocab_end_index]
        missing = self.vocab_end_index - self.vocab_start_index - len(bias)
        return F.pad(bias, (0, missing), value=float("-inf")) if missing else bias
