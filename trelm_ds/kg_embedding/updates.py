"""One training step: negative sampling loss on the rows that it needs, and row-wise Adagrad on those alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trelm_ds.keyed_random import Stream, keyed_uniform
from trelm_ds.kg_embedding.batches import Chunks
from trelm_ds.kg_embedding.scores import Method
from trelm_ds.knowledge.tables import ShardedTable, TableGroup

_EPSILON = 1e-10


class Places(NamedTuple):
    """Where each row of some chunks is among the m rows that were looked up: int64, shapes as in `Chunks`."""

    heads: Tensor
    relations: Tensor
    tails: Tensor
    negatives: Tensor


@dataclass(frozen=True)
class Objective:
    """Self-adversarial negative sampling (Sun et al. 2019, Eq. 5 and 6), with negatives shared in each chunk.

    Attributes:
        method: scores s of triples.
        margin: gamma.
        temperature: alpha; 0 weighs all negatives equally.
        regularization: of the cube of every number of the positives (N3; Lacroix et al. 2018), 0 for none.
    """

    method: Method
    margin: float
    temperature: float
    regularization: float

    def loss(self, values: Tensor, chunks: Chunks, places: Places) -> Tensor:
        """Sum the positives' losses, half of -log sig(gamma + s) - sum_i p_i log sig(-gamma - s_i) each.

        p is the softmax of alpha s_i over the chunk's negatives, as a constant. A negative that is the positive's own
        entity does not count; other triples that are true may be among them.

        Args:
            values: float32 [m, D], the rows of entities and relations in this step.
            chunks: G chunks.
            places: where in `values` each row of the chunks is.

        Returns:
            a number; 0 where there are no chunks.
        """
        total = values.sum() * 0
        for tails in (True, False):
            group = np.flatnonzero(chunks.corrupt_tails == tails)
            if not len(group):
                continue
            asked = chunks.tails if tails else chunks.heads
            heads, relations, tail_rows, negatives = (
                F.embedding(place[group], values)
                for place in (places.heads, places.relations, places.tails, places.negatives)
            )
            given, truth = (heads, tail_rows) if tails else (tail_rows, heads)
            queries = self.method.query(given, relations, tails)
            positive = F.logsigmoid(self.margin + self.method.pairs(queries, truth))
            found = self.method.scores(queries, negatives)
            same = torch.from_numpy(asked[group][:, :, None] == chunks.negatives[group][:, None, :]).to(found.device)
            weights = torch.softmax((self.temperature * found.detach()).masked_fill(same, -torch.inf), -1).nan_to_num()
            negative = (weights * F.logsigmoid(-self.margin - found)).sum(-1)
            total = total - (positive + negative).sum() / 2
            if self.regularization:
                cubes = sum(self._cubes(rows) for rows in (given, relations, truth))
                total = total + self.regularization * cubes
        return total

    @staticmethod
    def _cubes(rows: Tensor) -> Tensor:
        return rows.abs().pow(3).sum()


class Embeddings:
    """Vectors of E entities, then of R relations, with the state of their optimizer, sharded over the ranks.

    Row-wise Adagrad (as in DGL-KE): a row's step is lr g / sqrt(sum over its updates of mean(g^2)). Beside the row it
    keeps one number, and only rows in the batch are read or written.

    Attributes:
        table: float32 [E + R, D].
        sums: float32 [E + R, 1], the sums of mean(g^2).
    """

    def __init__(self, n_entities: int, n_relations: int, dim: int, device: torch.device, group: TableGroup) -> None:
        self.n_entities, self.n_relations = n_entities, n_relations
        self.table = ShardedTable(n_entities + n_relations, dim, torch.float32, device, group)
        self.sums = ShardedTable(n_entities + n_relations, 1, torch.float32, device, group)

    @property
    def local_entities(self) -> Tensor:
        """This rank's rows of entities, [E_local, D]: a view; row i is entity rank + i N."""
        group = self.table.group
        return self.table.local[: len(range(group.rank, self.n_entities, group.world_size))]

    def initialize(self, seed: int, spread: float) -> None:
        """Draw all numbers uniformly from -spread to spread, each a function of seed, row and column."""
        columns = np.arange(self.table.width)

        def values_of(rows: Tensor) -> Tensor:
            uniform = keyed_uniform(seed, int(Stream.KG_INITIAL), rows.numpy()[:, None], columns)
            return torch.from_numpy(((2 * uniform - 1) * spread).astype(np.float32))

        self.table.fill(values_of)

    def step(self, objective: Objective, chunks: Chunks, batch_size: int, lr: float) -> float:
        """Take one step by the mean loss over the positives of all ranks; collective.

        Args:
            chunks: this rank's; there may be none.
            batch_size: positives on all ranks.

        Returns:
            this rank's share of the mean loss.
        """
        rows, places = self._places(chunks)
        route = self.table.route(rows)
        values = self.table.start_lookup(route).wait().requires_grad_()
        loss = objective.loss(values, chunks, places) / batch_size
        (gradient,) = torch.autograd.grad(loss, values)
        self._update(*self._summed(*self.table.send(route, gradient), route.received), lr)
        return float(loss.detach())

    def _places(self, chunks: Chunks) -> tuple[Tensor, Places]:
        """Return the different rows [m] of the chunks, int64 on the CPU, and where each row is among them."""
        parts = (chunks.heads, chunks.relations + self.n_entities, chunks.tails, chunks.negatives)
        rows, places = np.unique(np.concatenate([part.ravel() for part in parts]), return_inverse=True)
        cuts = np.split(places.ravel(), np.cumsum([part.size for part in parts])[:-1])
        device = self.table.local.device
        shaped = (torch.from_numpy(cut.reshape(part.shape)).to(device) for cut, part in zip(cuts, parts, strict=True))
        return torch.from_numpy(rows), Places(*shaped)

    @staticmethod
    def _summed(rows: Tensor, gradients: Tensor, received: list[int]) -> tuple[Tensor, Tensor]:
        """Sum what the ranks have sent for each row: different rows [u], and gradients [u, D]."""
        if len(received) == 1:  # they differ already
            return rows, gradients
        different, places = torch.unique(rows, return_inverse=True)
        sums = gradients.new_zeros(len(different), gradients.shape[1])
        # One rank after another: the rows of one differ, so that the order of the sum is the same on a GPU as well.
        for place, part in zip(places.to(sums.device).split(received), gradients.split(received), strict=True):
            sums.index_add_(0, place, part)
        return different, sums

    def _update(self, rows: Tensor, gradients: Tensor, lr: float) -> None:
        place = self.table.place(rows)
        sums = self.sums.local.index_select(0, place) + gradients.square().mean(1, keepdim=True)
        self.sums.local.index_copy_(0, place, sums)
        self.table.local.index_add_(0, place, gradients / (sums.sqrt() + _EPSILON), alpha=-lr)

    def blocks(self, first: int, n_rows: int, block: int = 65536) -> Iterator[Tensor]:
        """Yield n_rows rows from `first` on in blocks on the CPU, on rank 0; empty blocks elsewhere; collective."""
        for start in range(first, first + n_rows, block):
            mine = torch.arange(start, min(start + block, first + n_rows)) if self.table.group.rank == 0 else None
            yield self.table.start_lookup(mine if mine is not None else torch.empty(0, dtype=torch.int64)).wait().cpu()
