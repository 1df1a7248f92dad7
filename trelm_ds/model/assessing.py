"""Contrastive knowledge assessing (paper 3.1, Eq. 2): whether the model can complete a fact."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trelm_ds.model.batch import AssessingBatch, StepTables
from trelm_ds.model.encoder import Encoder, WordEmbedding
from trelm_ds.model.encoder_config import EncoderConfig
from trelm_ds.model.head import MaskedLMHead


class ScoringModel(Protocol):
    """What assessing needs of the `MaskedLanguageModel` that it is part of."""

    encoder: Encoder
    head: MaskedLMHead


class Assessing(nn.Module):
    """The objective of Eq. 2.

    Args:
        decoder: of "product", which has weights of its own, or of "mention"; None for "query". The latter two go
            through the MLM head, so that whatever is learned there is what a cloze question reads.
    """

    def __init__(self, decoder: ProductDecoder | MentionDecoder | None = None) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, hidden: Tensor, given: AssessingBatch, tables: StepTables, model: ScoringModel
    ) -> tuple[Tensor, Tensor]:
        """Sum the losses over the answers' tokens, given the last-layer states [T, D].

        Returns:
            the sum [] fp32, 0 but tied to every parameter where there is no fact; and how often the answer scored
            highest, [] int64.
        """
        bias = None
        if isinstance(self.decoder, ProductDecoder):
            decoded = self.decoder(hidden, given, tables.vectors)
        else:
            states = hidden.index_select(0, given.positions)
            if self.decoder is not None:
                states = self.decoder(states, given, tables.vectors)
            decoded, bias = model.head.transform(states), answer_bias(model, tables)
        return contrastive_loss(decoded, model.encoder.embeddings.word, given.labels, tables, bias)


def answer_bias(model: ScoringModel, tables: StepTables) -> Tensor | None:
    """Return the MLM head's bias [V] where the answers to queries are scored with it, else None.

    A cloze question is, so queries are where all words compete or drawn ones are corrected (logQ). Uncorrected draws
    take the words' frequency out of the scores; a bias, which carries it, would be pulled away from what MLM needs.
    """
    if tables.candidates.numel() and tables.log_counts is None:
        return None
    bias: Tensor = model.head(None, model.encoder.embeddings.word)
    return bias


def contrastive_loss(
    states: Tensor, word: WordEmbedding, labels: Tensor, tables: StepTables, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute Eq. 2 with f(h, y) = <h, word embedding of y> + bias of y.

    Candidates are shared by all N tokens; one that is a token's own answer does not compete with it.

    Args:
        states: [N, D], h_d^i.
        word: the word embedding.
        labels: int64 [N], the answers' tokens.
        tables: candidates and their correction.
        bias: [V]; None for none, Eq. 2 to the letter.

    Returns:
        the losses' sum, [] fp32, and how often the answer scored highest, [] int64.
    """
    if not tables.candidates.numel():
        loss, correct = word(states, states.new_zeros(word.num_embeddings) if bias is None else bias, labels)
        return loss, correct
    true, others = _candidate_scores(states, word, labels, tables, bias)
    losses = torch.logsumexp(torch.cat([true, others], dim=1), dim=1) - true[:, 0]
    return losses.sum(), (true > others).all(dim=1).sum()


def answer_probabilities(
    states: Tensor, word: WordEmbedding, labels: Tensor, tables: StepTables, bias: Tensor | None = None
) -> Tensor:
    """Compute p of Eq. 9, the probability of every answer's token among its candidates.

    Args:
        states: [N, D], h_d^i.
        word: the word embedding.
        labels: int64 [N], the answers' tokens.
        tables: candidates and their correction.
        bias: [V], as in `contrastive_loss`.

    Returns:
        float32 [N].
    """
    if not tables.candidates.numel():
        return word.probabilities(states, states.new_zeros(word.num_embeddings) if bias is None else bias, labels)
    return torch.softmax(torch.cat(_candidate_scores(states, word, labels, tables, bias), dim=1), dim=1)[:, 0]


def _candidate_scores(
    states: Tensor, word: WordEmbedding, labels: Tensor, tables: StepTables, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Score the answers' tokens, float32 [N, 1], and what competes with them, [N, C]."""
    candidates = tables.candidates
    true = (states * word(labels)).sum(-1, keepdim=True).float()
    others = (states @ word(candidates).t()).float()
    if bias is not None:
        # Not bias[labels]: its gradient would be summed in another order every time.
        true = true + F.embedding(labels, bias[:, None]).float()
        others = others + F.embedding(candidates, bias[:, None])[:, 0].float()
    if tables.log_counts is not None:
        true = true - tables.log_counts[labels, None]
        others = others - tables.log_counts[candidates]
    return true, others.masked_fill(candidates == labels[:, None], float("-inf"))


class ProductDecoder(nn.Module):
    """DKPLM's decoder: h^0 = mean of the mention's states, h^i = tanh(W (h_rel * h^(i-1))).

    Head and tail are different questions about a relation, so each direction has a W of its own. h_rel is brought to
    root mean square 1: at the scale of word embeddings, about 0.02, every place would shrink the state fifty-fold.

    Args:
        config: sizes.
        max_places: longest answer in tokens.
    """

    def __init__(self, config: EncoderConfig, max_places: int) -> None:
        super().__init__()
        self.max_places = max_places
        self.tail, self.head = (nn.Linear(config.hidden_size, config.hidden_size, bias=False) for _ in range(2))

    def forward(self, hidden: Tensor, given: AssessingBatch, vectors: Tensor) -> Tensor:
        """Decode states [T, D] into h_d^i [N, D] for i = 1 ... of every answer; h_rel are rows of `vectors` [U', D]."""
        state = _span_means(hidden, given.spans)
        relations = F.rms_norm(vectors[given.relations], vectors.shape[-1:]).to(state.dtype)
        decoded = []
        for _ in range(self.max_places):
            product = relations * state
            state = torch.tanh(torch.where(given.inverse[:, None], self.head(product), self.tail(product)))
            decoded.append(state)
        return torch.stack(decoded)[given.place, given.fact]


class MentionDecoder(nn.Module):
    """EasyNLP's reading of DKPLM: a mention's own tokens from its states times the injected triple's relation.

    The relation is brought to root mean square 1, as in `ProductDecoder`.
    """

    def forward(self, states: Tensor, given: AssessingBatch, vectors: Tensor) -> Tensor:
        """Multiply the states [N, D] at the mentions' tokens by their relations, rows of `vectors` [U', D]."""
        relations = F.rms_norm(vectors[given.relations], vectors.shape[-1:]).to(states.dtype)
        return relations[given.fact] * states


def _span_means(hidden: Tensor, spans: Tensor) -> Tensor:
    """Average the rows [first, last) of [T, D]: [F, D]. As a product, which is deterministic on every device."""
    rows = torch.arange(len(hidden), device=hidden.device)
    inside = (rows >= spans[:, :1]) & (rows < spans[:, 1:])
    return (inside / (spans[:, 1:] - spans[:, :1])).to(hidden.dtype) @ hidden
