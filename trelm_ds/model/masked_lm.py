"""What pre-training optimises: masked language modelling, with injected knowledge and assessed facts beside it."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from trelm_ds.model.assessing import ProductDecoder, Questions, contrastive_loss
from trelm_ds.model.attention import Tail
from trelm_ds.model.encoder import Encoder, Injected, WordEmbedding, initialize
from trelm_ds.model.encoder_config import EncoderConfig
from trelm_ds.model.feed_forward import activation

DECODER = "decoder."  # begins the names of the product decoder's parameters, which no exported model has


class MaskedLMOutput(NamedTuple):
    """What one micro-batch yields. Sums, because the means are over the tokens of all ranks and micro-batches."""

    mlm_loss: Tensor
    """[] fp32: sum of the cross-entropies of the M masked tokens; 0, still tied to every parameter, when M = 0"""
    mlm_correct: Tensor
    """[] int64: masked tokens whose true token scored highest"""
    states: Tensor
    """[T, D] last-layer states, detached: what the memory bank is updated from"""
    cka_loss: Tensor | None = None
    """[] fp32: sum of Eq. 2 over the N tokens of the facts' answers; None without questions"""
    cka_correct: Tensor | None = None
    """[] int64: of those, how many scored higher than every candidate"""


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

    def transform(self, hidden: Tensor) -> Tensor:
        """[M, D] -> [M, D], what the word embeddings are compared with."""
        transformed: Tensor = self.norm(self.activation(self.dense(hidden)))
        return transformed

    def forward(self, hidden: Tensor, word_embedding: WordEmbedding) -> Tensor:
        """[M, D] -> [M, V]."""
        return word_embedding(self.transform(hidden), self.bias)


class MaskedLanguageModel(nn.Module):
    """Encoder and MLM head; the decoder is the word embedding itself, so there is one Parameter for both.

    Args:
        config: sizes.
        activation_checkpointing: recompute every encoder layer in the backward pass.

    Attributes:
        decoder: for assessing by "product", which has weights of its own; None for "query", which goes through the MLM
            head, so that whatever is learned there is what a cloze question reads.
    """

    def __init__(self, config: EncoderConfig, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, activation_checkpointing)
        self.head = MaskedLMHead(config)
        self.decoder: ProductDecoder | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every word for states [M, D] -> [M, V], in the model's precision."""
        return self.head(hidden, self.encoder.embeddings.word)

    def forward(
        self,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        positions: Tensor,
        labels: Tensor,
        injected: Injected | None = None,
        questions: Questions | None = None,
        tail: Tail | None = None,
    ) -> MaskedLMOutput:
        """Both losses of Eq. 3 on packed sequences and the queries packed behind them; the head runs on masked rows.

        Args:
            input_ids: [T] int64, masks in place.
            cu_seqlens: [B + 1] int32, where each document starts; from 0 to T.
            max_seqlen: length of the longest document.
            positions: [M] int64, rows of the T to predict; M may be 0 on a rank.
            labels: [M] int64, the true tokens.
            injected: tokens whose embedding follows Eq. 7.
            questions: facts to complete; may hold none on a rank where others have some.
            tail: shorter documents at the end: the queries.
        """
        hidden = self.encoder(input_ids, cu_seqlens, max_seqlen, injected, tail)
        logits = self.logits(hidden.index_select(0, positions)).float()
        # A sum over no token is 0 with zero gradients, where a skipped head would leave this rank without the gradients
        # that the others wait to average.
        mlm_loss = F.cross_entropy(logits, labels, reduction="sum")
        mlm = mlm_loss, (logits.argmax(-1) == labels).sum(), hidden.detach()
        if questions is None:
            return MaskedLMOutput(*mlm)
        if self.decoder is None:
            decoded = self.head.transform(hidden.index_select(0, questions.positions))
        else:
            decoded = self.decoder(hidden, questions)
        return MaskedLMOutput(*mlm, *contrastive_loss(decoded, self.encoder.embeddings.word, questions))
