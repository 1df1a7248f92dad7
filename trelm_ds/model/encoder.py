"""BERT's and RoBERTa's encoder on packed documents: no padding token is ever computed outside attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trelm_ds.model.attention import PackedLayout, SelfAttention, Tail, packed_layout
from trelm_ds.model.cross_entropy import linear_cross_entropy
from trelm_ds.model.encoder_config import EncoderConfig
from trelm_ds.model.feed_forward import KeyValueFeedForward
from trelm_ds.model.injection import Injected

if TYPE_CHECKING:  # it imports megatron-core
    from trelm_ds.model.sequence_parallel import SequenceRegion


class WordEmbedding(nn.Embedding):
    """The word-embedding matrix [V, D] in both of its roles: lookup, and the MLM decoder that is tied to it.

    Both go through this module's forward, because ZeRO-3 holds a parameter together only while its own module runs.
    """

    @overload
    def forward(self, inputs: Tensor, vocabulary_bias: Tensor | None = None) -> Tensor: ...
    @overload
    def forward(self, inputs: Tensor, vocabulary_bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]: ...
    def forward(
        self, inputs: Tensor, vocabulary_bias: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Look up token ids [T] -> [T, D]; with `vocabulary_bias` [V], score states [M, D] -> [M, V].

        With `labels` [M] too, return the scores' cross-entropy instead, as `linear_cross_entropy` does.
        """
        if vocabulary_bias is None:
            return super().forward(inputs)
        if labels is None:
            return F.linear(inputs, self.weight, vocabulary_bias)
        return linear_cross_entropy(inputs, self.weight, vocabulary_bias, labels)

    def probabilities(self, states: Tensor, vocabulary_bias: Tensor, labels: Tensor) -> Tensor:
        """Compute the probability of labels [N] for states [N, D]: float32 [N]. The weight must be whole (ZeRO 3)."""
        scores = F.linear(states, self.weight, vocabulary_bias).float()
        return torch.softmax(scores, dim=1).gather(1, labels[:, None])[:, 0]


class Embeddings(nn.Module):
    """Sum of word, position and token-type embedding, LayerNorm, dropout."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size, self.offset = config.hidden_size, config.position_offset
        self.word = WordEmbedding(config.vocab_size, size, padding_idx=config.pad_token_id)
        self.position = nn.Embedding(config.max_position_embeddings + self.offset, size)
        self.token_type = nn.Embedding(config.type_vocab_size, size)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        injected: Injected | None = None,
        token_types: Tensor | None = None,
    ) -> Tensor:
        """Embed token ids [T] at positions [T] from 0: [T, D]. What is injected replaces the word embedding only."""
        if token_types is None:
            token_types = input_ids.new_zeros(1)  # every token is of type 0; the sum broadcasts
        word = self.word(input_ids)
        if injected is not None:
            plain = word.index_select(0, injected.rows)
            # Not vectors[items]: its gradient would be summed in another order every time.
            vectors = F.embedding(injected.items, injected.vectors)
            mixed = injected.keep[injected.items, None] * plain + vectors
            word = word.index_copy(0, injected.rows, mixed.to(word.dtype))
        summed = word + self.token_type(token_types) + self.position(positions + self.offset)
        return self.dropout(self.norm(summed))


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each followed by dropout, residual and LayerNorm (post-LN, as BERT)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = KeyValueFeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """Transform hidden states [T, D] -> [T, D]."""
        return self.transform(self.attend(hidden, layout))

    def attend(
        self,
        hidden: Tensor,
        layout: PackedLayout,
        rows: Tensor | None = None,
        row_layout: PackedLayout | None = None,
    ) -> Tensor:
        """Run the first half, attention, [T, D] -> [T, D]; with `rows` [Q, D] for those of its rows only."""
        attended = self.attention(hidden, layout, rows, row_layout)
        return self.attention_norm((hidden if rows is None else rows) + self.dropout(attended))

    def transform(self, hidden: Tensor) -> Tensor:
        """Run the second half, feed-forward, [T, D] -> [T, D]."""
        return self.finish(hidden, self.feed_forward(hidden))

    def finish(self, hidden: Tensor, fed_forward: Tensor) -> Tensor:
        """Finish the layer behind the feed-forward, given its input and its output [T, D]."""
        return self.feed_forward_norm(hidden + self.dropout(fed_forward))


class Encoder(nn.Module):
    """Token ids of packed documents to hidden states.

    Args:
        config: sizes.
        activation_checkpointing: recompute every layer in the backward pass, with the same dropout.

    Attributes:
        sequence_region: shares the tokens between the layers out over ranks; None where this one has all of them.
    """

    def __init__(self, config: EncoderConfig, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.config, self.activation_checkpointing = config, activation_checkpointing
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.sequence_region: SequenceRegion | None = None
        initialize(self, config)

    @property
    def blocks(self) -> list[EncoderLayer]:
        """The layers, with their type."""
        return [cast(EncoderLayer, layer) for layer in self.layers]

    def forward(
        self,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        injected: Injected | None = None,
        tail: Tail | None = None,
        token_types: Tensor | None = None,
    ) -> Tensor:
        """Encode B documents of together T tokens, each by itself.

        Args:
            input_ids: [T] int64, the documents one after another.
            cu_seqlens: [B + 1] int32, where each starts; from 0 to T.
            max_seqlen: length of the longest document.
            injected: tokens whose word embedding is replaced (Eq. 7).
            tail: shorter documents at the end; told so, they are not padded to the longest. Changes no result.
            token_types: [T] int64, which of two texts each token belongs to, for pairs; None: all to the first.

        Returns:
            [T, D] last-layer states.

        Raises:
            ValueError: when `max_seqlen` is more than the model has positions for.
        """
        if max_seqlen > self.config.max_position_embeddings:
            raise ValueError(
                f"a document of {max_seqlen} tokens is longer than the model's {self.config.max_position_embeddings} "
                "positions; prepare the corpus with shorter sequences"
            )
        layout = packed_layout(cu_seqlens, max_seqlen, input_ids.numel(), tail)
        hidden = self.embeddings(input_ids, layout.positions, injected, token_types)
        if self.sequence_region is not None:
            hidden = self.sequence_region.enter(hidden)
        for layer in self.layers:
            if self.activation_checkpointing and self.training:
                hidden = checkpoint(layer, hidden, layout, use_reentrant=False)
            else:
                hidden = layer(hidden, layout)
        if self.sequence_region is not None:
            hidden = self.sequence_region.leave(hidden, input_ids.numel())
        return hidden


@torch.no_grad()
def initialize(module: nn.Module, config: EncoderConfig) -> None:
    """Set BERT's start values: normal weights, biases 0, LayerNorm 1 and 0, the pad token's row 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=config.initializer_range)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            nn.init.zeros_(part.weight[part.padding_idx])
