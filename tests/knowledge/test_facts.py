"""Drawn triples against a loop over one mention's edges, and the rule that keeps answers out of the input."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np
import pytest

from trelm_ds.keyed_random import keyed_bits
from trelm_ds.knowledge import KnowledgeGraph, Names
from trelm_ds.knowledge.facts import CANDIDATES, TripleDraw, Triples
from trelm_ds.ragged import offsets_of

LONGEST = 3
Which = Literal["other", "same"]


def draw_graph(seed: int = 0, entities: int = 40, relations: int = 6, triples: int = 160) -> KnowledgeGraph:
    """Some entities with one edge, some with many more than K, some with none; some triples lead back to their head."""
    draw = np.random.default_rng(seed)
    ends = (entities * draw.random((triples, 2)) ** 2).astype(np.int32) + 1  # the first ones are hubs
    rows = np.column_stack([ends[:, 0], draw.integers(1, relations + 1, triples), ends[:, 1]])
    return KnowledgeGraph.from_triples(np.unique(rows, axis=0).astype(np.int32))


def draw_names(graph: KnowledgeGraph, seed: int = 0) -> Names:
    """Names of 0 to 5 tokens."""
    draw = np.random.default_rng(seed)
    none = np.zeros(0, dtype=np.int32)
    length = draw.integers(0, 6, len(graph.entities))
    tokens = draw.integers(0, 12, length.sum()).astype(np.int32)
    relation_length = np.arange(len(graph.relations)) % 4  # every fourth has no name
    relation_tokens = np.arange(relation_length.sum(), dtype=np.int32) + 20
    empty = offsets_of(np.zeros(len(graph.entities), dtype=np.int64)), none
    return Names(offsets_of(length), tokens, *empty, *empty, offsets_of(relation_length), relation_tokens)


GRAPH = draw_graph()
NAMES = draw_names(GRAPH)
Edge = tuple[int, int, bool]


def literal_candidates(row: int, key: int) -> list[Edge]:
    """(other, relation, inverse) of the edges that one mention looks at."""
    edges: list[Edge] = []
    for offsets, relations, others, inverse in (
        (GRAPH.out_offsets, GRAPH.out_relations, GRAPH.out_entities, False),
        (GRAPH.in_offsets, GRAPH.in_relations, GRAPH.in_entities, True),
    ):
        for place in range(int(offsets[row]), int(offsets[row + 1])):
            edges.append((int(others[place]), int(relations[place]), inverse))
    bits = [int(keyed_bits(place, after=np.uint64(key))) for place in range(CANDIDATES)]
    if len(edges) > CANDIDATES:
        looked = [edges[value % len(edges)] for value in bits]
    else:
        looked = [edges[place] for place in sorted(range(len(edges)), key=lambda place: bits[place] >> 1)]
    return [edge for edge in looked if edge[0] != row]  # a triple with itself says nothing


def name(offsets: np.ndarray, tokens: np.ndarray, row: int) -> list[int]:
    return tokens[offsets[row] : offsets[row + 1]].tolist()


def literal_draw(row: int, key: int, injects: bool, which: Which) -> tuple[Edge | None, Edge | None]:
    """The injected and the asked triple of one mention."""
    named = [
        edge
        for edge in literal_candidates(row, key)
        if name(NAMES.relation_offsets, NAMES.relation_tokens, edge[1])
        and name(NAMES.entity_offsets, NAMES.entity_tokens, edge[0])
    ]
    injected = named[0] if named and injects else None
    asked = None
    for edge in named:
        answer = name(NAMES.entity_offsets, NAMES.entity_tokens, edge[0])
        holds_answer = injected is not None and which == "other" and edge[0] == injected[0]
        if len(answer) <= LONGEST and not holds_answer:
            asked = edge
            break
    return injected, asked


def as_edges(triples: Triples) -> list[Edge | None]:
    return [
        (other, relation, inverse) if has else None
        for other, relation, inverse, has in zip(*(array.tolist() for array in triples), strict=True)
    ]


def as_first_edges(triples: Triples) -> list[Edge | None]:
    """The first triple of each row of [M, K] that is there."""
    each = (as_edges(Triples(*(array[row] for array in triples))) for row in range(len(triples.has)))
    return [next((edge for edge in edges if edge), None) for edges in each]


def mentions(count: int = 3000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, keys, and whether each may inject in this pass."""
    rows = np.random.default_rng(4).integers(0, len(GRAPH.entities), count)
    return rows, keyed_bits(7, np.arange(count)), np.arange(count) % 3 != 0


def draw_all(which: Which) -> tuple[Triples, Triples, Triples]:
    rows, keys, injects = mentions()
    draw = TripleDraw(GRAPH, NAMES, LONGEST)
    candidates = draw.candidates(rows, keys)
    injected = draw.injected(candidates, np.zeros_like(candidates.has))
    injected = injected._replace(has=injected.has & injects)
    return candidates, injected, draw.asked(candidates, injected, which)


@pytest.mark.parametrize("which", ["other", "same"])
def test_the_draws_are_those_of_a_loop(which: Which) -> None:
    candidates, injected, asked = draw_all(which)
    rows, keys, injects = mentions()
    drawn = list(zip(as_edges(injected), as_first_edges(asked), strict=True))
    for number, (row, key, may) in enumerate(zip(rows.tolist(), keys.tolist(), injects.tolist(), strict=True)):
        assert drawn[number] == literal_draw(row, key, may, which)
        looked = [edge for edge in as_edges(Triples(*(array[number] for array in candidates))) if edge]
        assert looked == literal_candidates(row, key)
    kinds = Counter((one is not None, other is not None) for one, other in drawn)
    assert all(kinds[kind] > 30 for kind in ((True, True), (True, False), (False, True), (False, False)))
    degrees = Counter((GRAPH.degrees(GRAPH.entities[rows]) > CANDIDATES).tolist())
    assert min(degrees.values()) > 300


def test_the_answer_is_never_the_injected_entity() -> None:
    _, injected, asked = draw_all("other")
    both = injected.has[:, None] & asked.has
    assert both.sum() > 500
    assert (injected.other[:, None] != asked.other)[both].all()
    _, injected, asked = draw_all("same")
    assert (injected.other[:, None] == asked.other)[injected.has[:, None] & asked.has].mean() > 0.5


@pytest.mark.parametrize("which", ["other", "same"])
@pytest.mark.parametrize("most", [2, 8])
def test_several_facts_of_a_mention_are_all_different(which: Which, most: int) -> None:
    candidates, injected, first = draw_all(which)
    asked = TripleDraw(GRAPH, NAMES, LONGEST).asked(candidates, injected, which, most)
    for number in range(len(asked.has)):
        looked, edges, one = (
            [edge for edge in as_edges(Triples(*(array[number] for array in of))) if edge]
            for of in (candidates, asked, first)
        )
        hidden = injected.other[number] if injected.has[number] and which == "other" else -1
        usable = [
            edge
            for edge in dict.fromkeys(looked)
            if edge[0] != hidden
            and 0 < len(name(NAMES.entity_offsets, NAMES.entity_tokens, edge[0])) <= LONGEST
            and name(NAMES.relation_offsets, NAMES.relation_tokens, edge[1])
        ]
        assert edges == usable[:most]
        assert one == usable[:1]


def test_a_fact_with_nothing_else_to_inject_is_asked_in_plain_passes_only() -> None:
    graph = KnowledgeGraph.from_triples(np.array([[1, 5, 2]], dtype=np.int32))
    one = np.array([0, 1, 2]), np.array([7, 8, 9], dtype=np.int32)
    names = Names(*one, *one, *one, np.array([0, 1]), np.array([6], dtype=np.int32))
    draw = TripleDraw(graph, names, 8)
    candidates = draw.candidates(np.array([0, 1]), keyed_bits(np.arange(2)))
    injected = draw.injected(candidates, np.zeros_like(candidates.has))
    assert as_edges(injected) == [(1, 0, False), (0, 0, True)]
    assert injected.sign.tolist() == [-1, 1]
    assert injected.sign.dtype == np.float32
    plain = injected._replace(has=np.zeros(2, dtype=bool))
    assert as_first_edges(draw.asked(candidates, injected, "other")) == [None, None]
    assert as_first_edges(draw.asked(candidates, plain, "other")) == as_edges(injected)
    assert as_first_edges(draw.asked(candidates, injected, "same")) == as_edges(injected)


def test_all_edges_of_an_entity_come_up_equally_often() -> None:
    rows = np.flatnonzero(GRAPH.degrees(GRAPH.entities) > 0)
    for row in (rows[np.argmax(GRAPH.degrees(GRAPH.entities[rows]))], rows[-1]):
        degree = int(GRAPH.degrees(GRAPH.entities[[row]])[0])
        candidates = TripleDraw(GRAPH, NAMES, LONGEST).candidates(np.full(20_000, row), keyed_bits(np.arange(20_000)))
        first = Counter(zip(*(array[:, 0].tolist() for array in candidates), strict=True))
        assert len(first) == degree
        assert max(first.values()) < 1.3 * min(first.values()) + 100


def test_no_mentions_give_no_triples() -> None:
    draw = TripleDraw(GRAPH, NAMES, LONGEST)
    candidates = draw.candidates(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64))
    injected = draw.injected(candidates, np.zeros_like(candidates.has))
    assert [array.shape for array in injected] == [(0,)] * 4
    assert [array.shape for array in draw.asked(candidates, injected, "other", 3)] == [(0, CANDIDATES)] * 4
