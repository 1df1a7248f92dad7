"""Which triples a step trains on, and with which negatives: a function of the seed and the step alone."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from trelm_ds.keyed_random import Stream, keyed_bits, keyed_permutation
from trelm_ds.knowledge import KnowledgeGraph


class Chunks(NamedTuple):
    """Chunks of C positives that share K negatives; those of one step that one rank takes.

    Attributes:
        heads, relations, tails: int64 [G, C], rows of the graph.
        negatives: int64 [G, K], rows of entities that replace the tail, or the head, of each positive of the chunk.
        corrupt_tails: bool [G], which of the two.
    """

    heads: np.ndarray
    relations: np.ndarray
    tails: np.ndarray
    negatives: np.ndarray
    corrupt_tails: np.ndarray


class TripleBatches:
    """Cuts passes over the training triples, each in an order of its own, into steps of G_all chunks.

    The passes follow one another without a gap, so all steps are of equal size, and a step may reach into the next
    pass. Rank r takes the chunks r, r + N, ...: what a step trains on does not depend on N.

    Args:
        graph: of the dataset, memory-mapped.
        edges: int [n], the training triples, as positions in `graph.out_entities`.
        batch_size, chunk_size, negatives: positives in a step, C, and K; C divides the first.
        seed: of orders and negatives.
        rank, world_size: this process, N.
    """

    def __init__(
        self,
        graph: KnowledgeGraph,
        edges: np.ndarray,
        batch_size: int,
        chunk_size: int,
        negatives: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._graph, self._edges, self._seed = graph, edges, seed
        self._batch_size, self._chunk_size, self._negatives = batch_size, chunk_size, negatives
        self._chunks = np.arange(rank, batch_size // chunk_size, world_size)
        self._order = lru_cache(maxsize=2)(self._order_of)

    def _order_of(self, number: int) -> np.ndarray:
        """Return the order of a pass, int32 [n] where that holds it."""
        order = keyed_permutation(len(self._edges), self._seed, Stream.KG_TRIPLE_ORDER, number)
        return order.astype(np.int32 if len(order) < 2**31 else np.int64)

    def __call__(self, step: int) -> Chunks:
        """Return this rank's chunks of a step, counted from 0."""
        first = step * self._batch_size + self._chunks * self._chunk_size
        positions = first[:, None] + np.arange(self._chunk_size)
        passes, places = np.divmod(positions, len(self._edges))
        edges = np.empty(positions.shape, dtype=np.int64)
        for number in np.unique(passes).tolist():
            chosen = passes == number
            edges[chosen] = self._edges[self._order(number)[places[chosen]]]
        keys = keyed_bits(self._seed, Stream.KG_NEGATIVE, step, self._chunks)
        draws = keyed_bits(np.arange(self._negatives), after=keys[:, None])
        return Chunks(
            *triples_of(self._graph, edges),
            (draws % np.uint64(len(self._graph.entities))).astype(np.int64),
            (self._chunks + step) % 2 == 0,
        )


def triples_of(graph: KnowledgeGraph, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows of head, relation and tail, int64 [...], of triples by their positions [...] in the graph."""
    heads = np.searchsorted(graph.out_offsets, edges, side="right") - 1
    return heads, graph.out_relations[edges].astype(np.int64), graph.out_entities[edges].astype(np.int64)
