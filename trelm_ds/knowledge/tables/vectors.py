"""Entity and relation vectors in word-embedding space, from which injected embeddings are computed (paper 3.1)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trelm_ds.knowledge.graph import KnowledgeGraph
from trelm_ds.knowledge.tables.sharded_table import ShardedTable, TableGroup
from trelm_ds.ragged import gather, offsets_of
from trelm_ds.streams import on_device

_BATCH = 65536  # rows held in double precision at a time


class VectorTable(ShardedTable):
    """Vectors v [E + R, D] of E entities followed by R relations, sharded over the ranks.

    `fill` it from an injection source, `match` it to the words, and `relate` relations to entities where they are not.

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
        """Give the entities the mean and scale of the word embeddings; collective.

        Entities become a (v - mean of the entities) + word_mean, with a = word_scale / scale of the entities. Relations
        become a v without a shift, which preserves v_tail = v_head + v_relation: a relation is a difference of
        entities, from which any shift cancels.

        Args:
            word_mean, word_scale: `word_statistics` of the word embeddings, [D] and a number.
            centre_relations: subtract the relations' mean. Meant for vectors computed from relation names, whose mean
                is that of text in general: it would move v_tail - v_relation away from the words in one direction, and
                v_head + v_relation in the other.
        """
        entities, relations = self._parts()
        mean, scale = self._statistics(entities, self.n_entities)
        factor = word_scale / scale if scale else 1.0
        _affine(entities, mean, factor, word_mean.detach().cpu().double())
        shift = torch.zeros(self.width, dtype=torch.float64)
        centre = shift
        if centre_relations and self.n_rows - self.n_entities > 1:  # a single relation would become 0
            centre, _ = self._statistics(relations, self.n_rows - self.n_entities)
        _affine(relations, centre, factor, shift)

    def relate(self, graph: KnowledgeGraph, entities: np.ndarray) -> None:
        """Make every relation the mean of its triples' tails minus the mean of their heads; collective.

        Where the table has all ends of a relation's triples, that is the mean of v_tail - v_head. The mean of all
        entities stands for tails or heads of which it has none.

        Args:
            graph: whose triples count.
            entities: int [E], the graph's row of each entity of the table.
        """
        n_relations = self.n_rows - self.n_entities
        own = self.owned[self.owned < self.n_entities].numpy()
        tails = self._sums_by_relation(own, entities[own], graph.in_offsets, graph.in_relations, n_relations)
        heads = self._sums_by_relation(own, entities[own], graph.out_offsets, graph.out_relations, n_relations)
        everything, _ = self._statistics(self._parts()[0], self.n_entities)
        means = (
            torch.where(sums[:, -1:] > 0, sums[:, :-1] / sums[:, -1:].clamp(min=1), everything)
            for sums in self.group.sum(torch.stack([tails, heads]))
        )
        difference = next(means) - next(means)
        relations = self.owned[self.owned >= self.n_entities]
        self.local[self.place(relations)] = difference[relations - self.n_entities].to(self.local)

    def _sums_by_relation(
        self, own: np.ndarray, rows: np.ndarray, offsets: np.ndarray, relations: np.ndarray, n_relations: int
    ) -> Tensor:
        """Sum this rank's entities over their edges, and count these, by relation: float64 [R, D + 1] on the CPU.

        Args:
            own: int64 [m], the entities, as rows of the table.
            rows: int64 [m], the same in the graph.
            offsets, relations: the graph's edges in one direction.
        """
        sums = torch.zeros(n_relations, self.width + 1, dtype=torch.float64)
        for first in range(0, len(own), _BATCH):
            batch = slice(first, first + _BATCH)
            named, degree = gather(offsets, relations, rows[batch])
            # An entity may be the tail of a million triples of one relation: it is read once, with a weight.
            edges = named.astype(np.int64) * len(degree) + np.repeat(np.arange(len(degree)), degree)
            distinct, count = np.unique(edges, return_counts=True)
            relation, entity = np.divmod(distinct, len(degree))
            bags = torch.from_numpy(np.searchsorted(relation, np.arange(n_relations + 1)))
            vectors = self.local[self.place(torch.from_numpy(own[batch]))].double().cpu()
            sums += F.embedding_bag(
                torch.from_numpy(entity),
                F.pad(vectors, (0, 1), value=1.0),
                bags,
                mode="sum",
                per_sample_weights=torch.from_numpy(count).double(),
                include_last_offset=True,
            )
        return sums

    def _parts(self) -> tuple[Tensor, Tensor]:
        """Return views of this rank's entities and relations."""
        own = len(range(self.group.rank, self.n_entities, self.group.world_size))
        return self.local[:own], self.local[own:]

    def _statistics(self, part: Tensor, n_rows: int) -> tuple[Tensor, float]:
        """Compute mean [D] and scale of the n_rows rows of which `part` is this rank's share; collective.

        In double precision, in which the sum of identical rows is exact and their scale exactly 0.
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
    """Compute factor (part - centre) + shift in place."""
    for rows in part.split(_BATCH):
        rows.copy_((rows.double() - centre.to(rows.device)) * factor + shift.to(rows.device))


def word_statistics(weight: Tensor) -> tuple[Tensor, float]:
    """Compute the mean, float32 [D], and the scale of a word-embedding matrix [V, D].

    The scale is the root mean square of all entries after centring each dimension.
    """
    weight = weight.detach().float()
    mean = weight.mean(0)
    return mean, float((weight - mean).square().mean().sqrt())


def mean_of_tokens(embed: Callable[[Tensor], Tensor], offsets: Tensor, tokens: Tensor) -> Tensor:
    """Average the word embeddings of n lists of tokens: for injection source alias_mean and for initial memories.

    Args:
        embed: maps distinct tokens, int64 [m] on the CPU, to their word embeddings [m, D]. Called exactly once, even
            with no tokens, since it is collective under ZeRO-3.
        offsets: int64 [n + 1] on the CPU, where each list starts in `tokens`.
        tokens: int64 [K] on the CPU.

    Returns:
        float32 [n, D] on the embeddings' device; 0 for an empty list.
    """
    distinct, index = torch.unique(tokens, return_inverse=True)
    rows = embed(distinct).detach().float()
    if not len(tokens):
        return rows.new_zeros(len(offsets) - 1, rows.shape[1])
    bags = on_device(offsets, rows.device)
    return F.embedding_bag(on_device(index, rows.device), rows, bags, mode="mean", include_last_offset=True)


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
