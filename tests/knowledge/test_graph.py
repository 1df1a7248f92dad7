"""The knowledge graph: rows in both directions, duplicates, degrees, files."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from trelm_ds.errors import UserError
from trelm_ds.knowledge import GraphFile, KnowledgeGraph, find_wikidata5m, read_names, read_triples

TRIPLES = "Q5\tP2\tQ7\nQ5\tP1\tQ9\nQ9\tP1\tQ5\nQ5\tP2\tQ7\n"


def edges(graph: KnowledgeGraph, direction: str) -> set[tuple[int, int, int]]:
    offsets, relations, others = (
        getattr(graph, f"{direction}_{part}") for part in ("offsets", "relations", "entities")
    )
    return {
        (int(graph.entities[row]), int(graph.relations[relations[edge]]), int(graph.entities[others[edge]]))
        for row in range(len(graph.entities))
        for edge in range(offsets[row], offsets[row + 1])
    }


def test_both_directions_hold_every_triple_once(tmp_path: Path) -> None:
    (tmp_path / "t.gz").write_bytes(gzip.compress(TRIPLES.encode()))
    triples, repeated, malformed = read_triples([GraphFile(tmp_path / "t.gz")])
    assert (repeated, malformed) == (1, 0)
    KnowledgeGraph.from_triples(triples).save(tmp_path / "graph")
    graph = KnowledgeGraph.load(tmp_path / "graph")
    expected = {(5, 2, 7), (5, 1, 9), (9, 1, 5)}
    assert graph.n_triples == 3
    assert edges(graph, "out") == expected
    assert {(head, relation, tail) for tail, relation, head in edges(graph, "in")} == expected
    np.testing.assert_array_equal(graph.degrees(np.array([5, 7, 9, 1, 100])), [3, 1, 2, 0, 0])


def test_names_skip_empty_ones(tmp_path: Path) -> None:
    (tmp_path / "n").write_text("Q3\tEarth\t\tTerra\nQ4\n")
    assert list(read_names(GraphFile(tmp_path / "n"), "Q")) == [(3, ["Earth", "Terra"]), (4, [])]


def test_files_are_found_plain_or_gzipped(tmp_path: Path) -> None:
    for name in ("all_triplet.txt.gz", "entity.txt", "relation.txt", "text.txt"):
        (tmp_path / f"wikidata5m_{name}").touch()
    found = find_wikidata5m(tmp_path)
    assert [path.name for path in found.paths] == [
        "wikidata5m_all_triplet.txt.gz", "wikidata5m_entity.txt", "wikidata5m_relation.txt", "wikidata5m_text.txt"
    ]  # fmt: skip
    (tmp_path / "wikidata5m_text.txt").unlink()
    assert find_wikidata5m(tmp_path).text is None


def test_an_empty_file_and_broken_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t").touch()
    with pytest.raises(UserError, match="holds no triple"):
        read_triples([GraphFile(tmp_path / "t")])
    (tmp_path / "t").write_bytes(b"Q1\tP1\tQ2\nQ1\tP\xff\tQ2\n")
    with pytest.raises(UserError, match="t:2: not valid UTF-8"):
        read_triples([GraphFile(tmp_path / "t")])
