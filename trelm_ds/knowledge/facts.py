"""Triples drawn for mentions: the one that is injected (paper 3.2) and those the model is asked about (Eq. 2)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from trelm_ds.keyed_random import keyed_bits
from trelm_ds.knowledge.graph import KnowledgeGraph
from trelm_ds.knowledge.names import Names

CANDIDATES = 8  # K, edges considered for a mention
_LAST = np.uint64(1 << 63)


class Triples(NamedTuple):
    """Triples as seen from mentions: arrays of one shape, whose values are meaningless where `has` is False.

    Attributes:
        other: int64, the entity at the other end, as a row of the graph's entities.
        relation: int64, row of the graph's relations.
        inverse: bool, whether the mention is the tail.
        has: bool, whether there is a triple.
    """

    other: np.ndarray
    relation: np.ndarray
    inverse: np.ndarray
    has: np.ndarray

    def of(self, rows: np.ndarray) -> Triples:
        """Select triples by index, int [n], or by mask, bool [M]."""
        return Triples(*(array[rows] for array in self))

    @property
    def sign(self) -> np.ndarray:
        """float32 sign of h_e = v_other + sign * v_relation: -1 where the mention is the head, 1 where it is tail."""
        return np.where(self.inverse, np.float32(1), np.float32(-1))


class TripleDraw:
    """Draws triples for mentions, as a pure function of its arguments.

    The d edges of an entity are numbered from 0, those where it is the head first. A mention considers `CANDIDATES` of
    them in keyed random order: a permutation of all edges if there are no more than that, else a draw with replacement.

    Args:
        graph: the dataset's knowledge graph.
        names: names of its entities and relations, which never contain [UNK]. Nothing without one is injected or asked.
        max_answer_tokens: entities with longer names are not asked for.
    """

    def __init__(self, graph: KnowledgeGraph, names: Names, max_answer_tokens: int) -> None:
        # Plain arrays over the same memory: indexing an np.memmap takes several times as long.
        self._out = tuple(map(np.asarray, (graph.out_offsets, graph.out_relations, graph.out_entities)))
        self._in = tuple(map(np.asarray, (graph.in_offsets, graph.in_relations, graph.in_entities)))
        length = np.diff(names.entity_offsets)
        self._named = length > 0
        self._named_relation = np.diff(names.relation_offsets) > 0
        self._askable = self._named & (length <= max_answer_tokens)

    def candidates(self, rows: np.ndarray, keys: np.ndarray) -> Triples:
        """Draw the K candidate triples of each mention, in order of preference.

        Args:
            rows: int64 [M], rows of the graph's entities.
            keys: uint64 [M], random bits of each mention.

        Returns:
            [M, K]; `has` is False after the last edge of an entity with fewer than K, and for self-loops.
        """
        n_out, n_in = (offsets[rows + 1] - offsets[rows] for offsets in (self._out[0], self._in[0]))
        degree = (n_out + n_in)[:, None]
        places = np.arange(CANDIDATES)
        bits = keyed_bits(places, after=keys[:, None])
        permuted = np.argsort(np.where(places < degree, bits >> np.uint64(1), _LAST), axis=1, kind="stable")
        drawn = (bits % np.maximum(degree, 1).astype(np.uint64)).astype(np.int64)
        edge = np.where(degree <= CANDIDATES, permuted, drawn)
        has = np.broadcast_to(places < degree, edge.shape)
        inverse = has & (edge >= n_out[:, None])
        other, relation = np.zeros((2, *edge.shape), dtype=np.int64)
        for (offsets, relations, others), chosen, place in (
            (self._out, has & ~inverse, edge),
            (self._in, inverse, edge - n_out[:, None]),
        ):
            row = (offsets[rows][:, None] + place)[chosen]
            other[chosen], relation[chosen] = others[row], relations[row]
        # A self-loop carries no information, and its query would contain the answer.
        return Triples(other, relation, inverse, has & (other != rows[:, None]))

    def injected(self, candidates: Triples, hidden: np.ndarray) -> Triples:
        """Return each mention's first candidate that may be injected, [M].

        Its relation and its other entity both have a name.

        Args:
            candidates: [M, K].
            hidden: bool [M, K], candidates whose other entity is what the model has to predict nearby.
        """
        usable = self._named[candidates.other] & self._named_relation[candidates.relation] & ~hidden
        return _first(candidates, usable)

    def asked(self, candidates: Triples, injected: Triples, which: Literal["other", "same"], most: int = 1) -> Triples:
        """Choose the triples that the model has to complete.

        Args:
            candidates: [M, K].
            injected: [M], the triples injected in this pass; `has` is False where nothing is injected.
            which: "other" takes the first askable candidates whose other entity is not the injected one, because the
                embedding v_other -+ v_relation would reveal that answer, whatever the relation. "same" takes the first
                askable candidates: the injected triple where it is askable.
            most: maximum number of triples per mention.

        Returns:
            the candidates [M, K], with `has` True for the triples asked for.
        """
        usable = candidates.has & self._askable[candidates.other] & self._named_relation[candidates.relation]
        if which == "other":
            usable &= ~injected.has[:, None] | (candidates.other != injected.other[:, None])
        if most > 1:
            usable &= ~_drawn_before(candidates)
        return candidates._replace(has=usable & (np.cumsum(usable, axis=1) <= most))


def _drawn_before(candidates: Triples) -> np.ndarray:
    """Mark candidates that repeat an earlier one, bool [M, K]: large entities draw with replacement."""
    edge = np.stack([candidates.other, candidates.relation, candidates.inverse])
    same = (edge[:, :, :, None] == edge[:, :, None, :]).all(axis=0)  # [M, place, place]
    return np.asarray(np.tril(same, -1).any(axis=2))


def _first(candidates: Triples, usable: np.ndarray) -> Triples:
    """Return the first usable candidate of each mention, [M]."""
    usable = usable & candidates.has
    place = np.argmax(usable, axis=1)[:, None]
    other, relation, inverse, has = (
        np.take_along_axis(array, place, axis=1)[:, 0] for array in (*candidates[:3], usable)
    )
    return Triples(other, relation, inverse, has)
