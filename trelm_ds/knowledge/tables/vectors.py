"""Vectors of entities and relations in word-embedding space, from which injected embeddings are made (paper 3.1)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trelm_ds.knowledge.tables.sharded_table import ShardedTable, TableGroup
from trelm_ds.ragged import gather, offsets_of

_BATCH = 65536  # rows whose double-precision copy is in memory


class VectorTable(ShardedTable):
    """v of E entities, and behind them of R relations, in D numbers each, spread over the ranks.

    `fill` it from an injection source, then `match` it to the words.

    Attributes:
        n_entities: E.
    """

    def __init__(
        self,
        n_entities: int,
        n_relations: int,
        size: int,
        dtype: torch.dtype,
        device: torch.device,
        group: TableGroup,
    ) -> None:
        super().__init__(n_entities + n_relations, size, dtype, device, group)
        self.n_entities = n_entities

    def match(self, word_mean: Tensor, word_scale: float, centre_relations: bool = False) -> None:
        """Gives the entities the mean and scale of the word embeddings; collective.

        Entities go to a (v - mean of the entities) + word_mean, with a = word_scale / scale of the entities; relations
        to a v, or the rule v_tail = v_head + v_relation would not survive: it is differences of entities that
        relations are, and those lose any shift.

        Args:
            word_mean, word_scale: `word_statistics` of the word embeddings, [D] and a number.
            centre_relations: take the relations' mean from them: for vectors that come from relations' names, whose
                mean is that of all text. Left in, it would take v_tail - v_relation away from the words, and
                v_head + v_relation to the other side.
        """
        entities, relations = self._parts()
        mean, scale = self._statistics(entities, self.n_entities)
        factor = word_scale / scale if scale else 1.0
        _affine(entities, mean, factor, word_mean.detach().cpu().double())
        shift = torch.zeros(self.width, dtype=torch.float64)
        centre = shift
        if centre_relations and self.n_rows - self.n_entities > 1:  # a single one would be 0
            centre, _ = self._statistics(relations, self.n_rows - self.n_entities)
        _affine(relations, centre, factor, shift)

    def _parts(self) -> tuple[Tensor, Tensor]:
        """Views of this rank's entities and relations."""
        own = len(range(self.group.rank, self.n_entities, self.group.world_size))
        return self.local[:own], self.local[own:]

    def _statistics(self, part: Tensor, n_rows: int) -> tuple[Tensor, float]:
        """Mean [D] and scale of the n_rows of which `part` is this rank's.

        In double precision: rows that are all alike have a scale of exactly 0, since their sum is exact.
        """
        total = torch.zeros(self.width, dtype=torch.float64)
        for rows in part.split(_BATCH):
            total += rows.double().sum(0).cpu()
        mean = self.group.sum(total) / max(n_rows, 1)
        spread = torch.zeros(1, dtype=torch.float64)
        for rows in part.split(_BATCH):
            spread += (rows.double() - mean.to(rows.device)).square().sum().cpu()
        variance = float(self.group.sum(spread)) / max(n_rows * self.width, 1)
        return mean, variance**0.5


def _affine(part: Tensor, centre: Tensor, factor: float, shift: Tensor) -> None:
    """part <- factor (part - centre) + shift, in place."""
    for rows in part.split(_BATCH):
        rows.copy_((rows.double() - centre.to(rows.device)) * factor + shift.to(rows.device))


def word_statistics(weight: Tensor) -> tuple[Tensor, float]:
    """Mean of each dimension, float32 [D], and scale of a word-embedding matrix [V, D].

    The scale is the root mean square of all entries without their dimension's mean.
    """
    weight = weight.detach().float()
    mean = weight.mean(0)
    return mean, float((weight - mean).square().mean().sqrt())


def mean_of_tokens(embed: Callable[[Tensor], Tensor], offsets: Tensor, tokens: Tensor) -> Tensor:
    """The mean word embedding of each of n lists of tokens.

    Args:
        embed: from distinct tokens, int64 [m] on the CPU, to their word embeddings [m, D]; called once, perhaps with
            none, since under ZeRO-3 it is collective.
        offsets: int64 [n + 1] on the CPU, where each list starts in `tokens`.
        tokens: int64 [K] on the CPU.

    Returns:
        float32 [n, D], on the embeddings' device; 0 for an empty list.
    """
    distinct, index = torch.unique(tokens, return_inverse=True)
    rows = embed(distinct).detach().float()
    if not len(tokens):
        return rows.new_zeros(len(offsets) - 1, rows.shape[1])
    bags = offsets.to(rows.device)
    return F.embedding_bag(index.to(rows.device), rows, bags, mode="mean", include_last_offset=True)


def token_means(word: Tensor, offsets: np.ndarray, tokens: np.ndarray) -> Callable[[Tensor], Tensor]:
    """Open the mean word embeddings of ragged lists of tokens: where memory starts, and injection source alias_mean.

    Args:
        word: float32 [V, D], the word embeddings.
        offsets: int64 [N + 1], where each list starts in `tokens`.
        tokens: int32 [K].

    Returns:
        A function from rows int64 [n] to [n, D], the mean of all words for an empty list.
    """
    neutral = word.mean(0)

    def means(rows: Tensor) -> Tensor:
        mine, lengths = gather(offsets, tokens, rows.numpy())
        bags = torch.from_numpy(offsets_of(lengths))
        found = mean_of_tokens(lambda ids: word[ids.to(word.device)], bags, torch.from_numpy(mine.astype(np.int64)))
        return torch.where(torch.from_numpy(lengths == 0)[:, None].to(found.device), neutral, found)

    return means
