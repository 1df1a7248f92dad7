"""The knowledge graph as memory-mapped compressed sparse rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trelm_ds.knowledge.arrays import Arrays
from trelm_ds.ragged import spread


def _rows(sources: np.ndarray, relations: np.ndarray, others: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """Group edges by `sources` into CSR form: offsets [size + 1], relations [N], others [N]."""
    order = np.argsort(sources, kind="stable")
    offsets = np.zeros(size + 1, dtype=np.int64)
    np.cumsum(np.bincount(sources, minlength=size), out=offsets[1:])
    return offsets, relations[order], others[order]


@dataclass(frozen=True)
class KnowledgeGraph(Arrays):
    """A directed labelled graph, indexed in both directions: E entities, R relations, N triples.

    Everything but `entities` and `relations` refers to entities and relations by their row in these two.

    Attributes:
        entities: int32 [E], QID numbers, ascending.
        relations: int32 [R], PID numbers, ascending.
        out_offsets, out_relations, out_entities: int64 [E + 1], int32 [N], int32 [N]; triples by head, in the order
            they were given.
        in_offsets, in_relations, in_entities: the same by tail.
    """

    entities: np.ndarray
    relations: np.ndarray
    out_offsets: np.ndarray
    out_relations: np.ndarray
    out_entities: np.ndarray
    in_offsets: np.ndarray
    in_relations: np.ndarray
    in_entities: np.ndarray

    @classmethod
    def from_triples(cls, triples: np.ndarray) -> KnowledgeGraph:
        """Build the graph from int32 [N, 3] (head, relation, tail numbers), sorted and without duplicates."""
        entities = np.unique(triples[:, [0, 2]])
        relations, relation = np.unique(triples[:, 1], return_inverse=True)
        head, tail = (np.searchsorted(entities, triples[:, column]).astype(np.int32) for column in (0, 2))
        relation = relation.astype(np.int32)
        size = len(entities)
        return cls(entities, relations, *_rows(head, relation, tail, size), *_rows(tail, relation, head, size))

    @property
    def n_triples(self) -> int:
        return len(self.out_entities)

    def degrees(self, qids: np.ndarray) -> np.ndarray:
        """Count the triples, in either direction, of each QID number in `qids` [n]; 0 for unknown entities."""
        qids = qids.astype(self.entities.dtype)  # with another dtype numpy would copy all entities
        row = np.minimum(np.searchsorted(self.entities, qids), len(self.entities) - 1)
        degree = sum(offsets[row + 1] - offsets[row] for offsets in (self.out_offsets, self.in_offsets))
        return np.where(self.entities[row] == qids, degree, 0)

    def find(self, triples: np.ndarray) -> np.ndarray:
        """Find triples int32 [n, 3] (head, relation, tail numbers); int64 [n], their places among all; -1 if absent."""
        query, edge = self._edges(triples[:, 0], triples[:, 2])
        same = self.relations[self.out_relations[edge]] == triples[query, 1]
        places = np.full(len(triples), -1)
        places[query[same]] = edge[same]
        return places

    def connects(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Whether a triple, in either direction, connects QID numbers int32 `first` [n] and `second` [n]; bool [n]."""
        found = np.zeros(len(first), dtype=bool)
        for heads, tails in ((first, second), (second, first)):
            found[self._edges(heads, tails)[0]] = True
        return found

    def _edges(self, heads: np.ndarray, tails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """List all triples from heads[i] to tails[i]: i, and the triple's place in the arrays by head."""
        row = np.minimum(np.searchsorted(self.entities, heads), len(self.entities) - 1)
        first = self.out_offsets[row]
        length = np.where(self.entities[row] == heads, self.out_offsets[row + 1] - first, 0)
        query, edge = np.repeat(np.arange(len(heads)), length), spread(first, length)
        to_tail = self.entities[self.out_entities[edge]] == tails[query]
        return query[to_tail], edge[to_tail]
