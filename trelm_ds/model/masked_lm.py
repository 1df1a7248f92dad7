"""Masked language modelling on packed documents."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from trelm_ds.model.encoder import Encoder, WordEmbedding, initialize
from trelm_ds.model.encoder_config import EncoderConfig
from trelm_ds.model.feed_forward import activation


class MaskedLMOutput(NamedTuple):
    """What one batch yields."""

    loss: Tensor
    """[] fp32: mean cross-entropy over the M masked tokens; 0, still tied to every parameter, when M = 0"""
    correct: Tensor
    """[] int64: masked tokens whose true token scored highest"""


class MaskedLMHead(nn.Module):
    """Dense, activation, LayerNorm, then the scores of all words against the shared word embedding."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        # Hugging Face's RoBERTa head has gelu whatever hidden_act says.
        self.activation = activation("gelu" if config.architecture == "roberta" else config.hidden_act)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(self.dense.weight.new_zeros(config.vocab_size))
        initialize(self, config)

    def forward(self, hidden: Tensor, word_embedding: WordEmbedding) -> Tensor:
        """[M, D] -> [M, V]."""
        return word_embedding(self.norm(self.activation(self.dense(hidden))), self.bias)


class MaskedLanguageModel(nn.Module):
    """Encoder and MLM head; the decoder is the word embedding itself, so there is one Parameter for both.

    Args:
        config: sizes.
        activation_checkpointing: recompute every encoder layer in the backward pass.
    """

    def __init__(self, config: EncoderConfig, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, activation_checkpointing)
        self.head = MaskedLMHead(config)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every word for states [M, D] -> [M, V], in the model's precision."""
        return self.head(hidden, self.encoder.embeddings.word)

    def forward(
        self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int, positions: Tensor, labels: Tensor
    ) -> MaskedLMOutput:
        """Predicts the masked tokens; the head runs on their rows only.

        Args:
            input_ids: [T] int64, packed documents with masks in place.
            cu_seqlens: [B + 1] int32, where each document starts; from 0 to T.
            max_seqlen: length of the longest document.
            positions: [M] int64, rows of the T to predict; M may be 0 on a rank.
            labels: [M] int64, the true tokens.
        """
        hidden = self.encoder(input_ids, cu_seqlens, max_seqlen)
        logits = self.logits(hidden.index_select(0, positions)).float()
        # A sum over no token is 0 with zero gradients, where the mean would be NaN and a skipped head would leave this
        # rank without the gradients that the others wait to average.
        loss = F.cross_entropy(logits, labels, reduction="sum") / max(1, labels.numel())
        return MaskedLMOutput(loss, (logits.argmax(-1) == labels).sum())
