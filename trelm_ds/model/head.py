"""The MLM head of BERT and RoBERTa."""

from __future__ import annotations

from typing import cast, overload

from torch import Tensor, nn

from trelm_ds.model.encoder import WordEmbedding, initialize
from trelm_ds.model.encoder_config import EncoderConfig
from trelm_ds.model.feed_forward import activation


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
        """Transform states [M, D] -> [M, D] into what the word embeddings are compared with."""
        transformed: Tensor = self.norm(self.activation(self.dense(hidden)))
        return transformed

    @overload
    def forward(self, hidden: Tensor | None, word_embedding: WordEmbedding) -> Tensor: ...
    @overload
    def forward(self, hidden: Tensor, word_embedding: WordEmbedding, labels: Tensor) -> tuple[Tensor, Tensor]: ...
    def forward(
        self, hidden: Tensor | None, word_embedding: WordEmbedding, labels: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Score every word for states [M, D]: [M, V]; without states return a copy of the words' bias [V].

        With `labels` [M], return the scores' cross-entropy instead, as `linear_cross_entropy` does.

        ZeRO-3 holds the bias together only while this runs, so nobody else may read it.
        """
        if hidden is None:
            return self.bias.clone()
        transformed = self.transform(hidden)
        if labels is None:
            return cast(Tensor, word_embedding(transformed, self.bias))
        return cast("tuple[Tensor, Tensor]", word_embedding(transformed, self.bias, labels))
