"""Contrastive knowledge assessing (paper 3.1, Eq. 2): whether the model can complete a fact."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trelm_ds.model.encoder import WordEmbedding
from trelm_ds.model.encoder_config import EncoderConfig


class Questions(NamedTuple):
    """F facts whose answers have N tokens in all. A NamedTuple for ZeRO-3, as `Injected`."""

    labels: Tensor
    """[N] int64, the answers' tokens"""
    fact: Tensor
    """[N] int64, the fact of each"""
    place: Tensor
    """[N] int64, i of Eq. 2, from 0"""
    positions: Tensor
    """[N] int64, decoder query: the mask of each in T"""
    spans: Tensor
    """[F, 2] int64, decoder product: the mention's rows of T, first and last + 1"""
    relations: Tensor
    """[F, D] float32, decoder product: h_rel; no gradient flows into it"""
    inverse: Tensor
    """[F] bool, whether the head is asked for"""
    candidates: Tensor
    """[C] int64, tokens that compete with every answer; none of them: the whole vocabulary competes"""
    log_counts: Tensor | None = None
    """[V] float32, log of how often each token is expected among the candidates; None: no logQ correction"""


def contrastive_loss(states: Tensor, word: WordEmbedding, questions: Questions) -> tuple[Tensor, Tensor]:
    """Eq. 2 with f(h, y) = <h, word embedding of y>.

    Candidates are shared by all N tokens; one that is a token's own answer does not compete with it.

    Args:
        states: [N, D], h_d^i.
        word: the word embedding.
        questions: labels and candidates.

    Returns:
        the losses' sum, [] fp32, and how often the answer scored highest, [] int64.
    """
    if not questions.candidates.numel():
        scores = _vocabulary_scores(states, word)
        correct = scores.argmax(-1) == questions.labels
        return F.cross_entropy(scores, questions.labels, reduction="sum"), correct.sum()
    true, others = _candidate_scores(states, word, questions)
    losses = torch.logsumexp(torch.cat([true, others], dim=1), dim=1) - true[:, 0]
    return losses.sum(), (true > others).all(dim=1).sum()


def answer_probabilities(states: Tensor, word: WordEmbedding, questions: Questions) -> Tensor:
    """p of Eq. 9, the probability of every answer's token among its candidates: from states [N, D] float32 [N]."""
    if not questions.candidates.numel():
        scores = _vocabulary_scores(states, word)
        return torch.softmax(scores, dim=1).gather(1, questions.labels[:, None])[:, 0]
    return torch.softmax(torch.cat(_candidate_scores(states, word, questions), dim=1), dim=1)[:, 0]


def _vocabulary_scores(states: Tensor, word: WordEmbedding) -> Tensor:
    """float32 [N, V]."""
    return word(states, states.new_zeros(word.num_embeddings)).float()


def _candidate_scores(states: Tensor, word: WordEmbedding, questions: Questions) -> tuple[Tensor, Tensor]:
    """float32 scores of the answers' tokens [N, 1], and of what competes with them [N, C]."""
    labels, candidates = questions.labels, questions.candidates
    true = (states * word(labels)).sum(-1, keepdim=True).float()
    others = (states @ word(candidates).t()).float()
    if questions.log_counts is not None:
        true = true - questions.log_counts[labels, None]
        others = others - questions.log_counts[candidates]
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

    def forward(self, hidden: Tensor, questions: Questions) -> Tensor:
        """States [T, D] -> h_d^i [N, D] for i = 1 ... of every answer."""
        state = _span_means(hidden, questions.spans)
        relations = F.rms_norm(questions.relations, questions.relations.shape[-1:]).to(state.dtype)
        decoded = []
        for _ in range(self.max_places):
            product = relations * state
            state = torch.tanh(torch.where(questions.inverse[:, None], self.head(product), self.tail(product)))
            decoded.append(state)
        return torch.stack(decoded)[questions.place, questions.fact]


def _span_means(hidden: Tensor, spans: Tensor) -> Tensor:
    """Means of the rows [first, last) of [T, D]: [F, D]. As a product, which is deterministic on every device."""
    rows = torch.arange(len(hidden), device=hidden.device)
    inside = (rows >= spans[:, :1]) & (rows < spans[:, 1:])
    return (inside / (spans[:, 1:] - spans[:, :1])).to(hidden.dtype) @ hidden
