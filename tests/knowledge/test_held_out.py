"""Facts held out of the graph: the draw, and where they are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trelm_ds.knowledge import KnowledgeGraph, draw_held_out, read_held_out, write_held_out


def some_triples(n: int, entities: int = 40, relations: int = 4) -> np.ndarray:
    draw = np.random.default_rng(n)
    drawn = draw.integers(1, [entities, relations, entities], (n, 3))
    return np.unique(drawn * [7, 3, 7], axis=0).astype(np.int32)


def test_a_draw_depends_on_the_triple_alone() -> None:
    triples = some_triples(20_000, entities=4000)
    chosen = draw_held_out(triples, 0.2, 5)
    assert abs(chosen.mean() - 0.2) < 0.01
    order = np.random.default_rng(0).permutation(len(triples))[:3000]
    np.testing.assert_array_equal(draw_held_out(triples[order], 0.2, 5), chosen[order])
    assert (draw_held_out(triples, 0.3, 5) >= chosen).all()
    assert abs((draw_held_out(triples, 0.2, 6) & chosen).mean() - 0.04) < 0.01
    assert draw_held_out(triples[:, ::-1], 0.2, 5).tolist() != chosen.tolist()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    triples = some_triples(50)
    write_held_out(tmp_path / "facts.tsv", triples)
    assert (tmp_path / "facts.tsv").read_text().startswith("Q21\tP3\tQ140\n")
    np.testing.assert_array_equal(read_held_out(tmp_path / "facts.tsv"), triples)


def test_triples_are_found_and_pairs_connected_as_in_a_set() -> None:
    triples = some_triples(300)
    kept = triples[::2]
    graph = KnowledgeGraph.from_triples(kept)
    asked = np.concatenate([triples, triples[:, ::-1], some_triples(300, entities=80), [[1, 1, 1], [10**9, 3, 7]]])
    asked = asked.astype(np.int32)
    places = {tuple(triple): place for place, triple in enumerate(kept.tolist())}
    pairs = {frozenset((head, tail)) for head, _, tail in kept.tolist()}
    assert graph.find(asked).tolist() == [places.get(tuple(triple), -1) for triple in asked.tolist()]
    assert graph.connects(asked[:, 0], asked[:, 2]).tolist() == [
        frozenset((head, tail)) in pairs for head, _, tail in asked.tolist()
    ]
    assert 100 < (graph.find(asked) >= 0).sum() < graph.connects(asked[:, 0], asked[:, 2]).sum() < len(asked) - 100
    nothing = np.zeros((0, 3), dtype=np.int32)
    assert graph.find(nothing).tolist() == graph.connects(nothing[:, 0], nothing[:, 2]).tolist() == []
