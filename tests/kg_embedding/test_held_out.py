"""What is held out: a share without orphans, files, triples beyond the graph, and what cannot be ranked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.kg_embedding.graphs import graph_of, torus
from tests.logged import warns
from trelm_ds.errors import UserError
from trelm_ds.kg_embedding.batches import triples_of
from trelm_ds.kg_embedding.held_out import Split, sample, split_graph
from trelm_ds.knowledge import KnowledgeGraph

SMALL = graph_of((1, 1, 2), (2, 1, 3), (3, 1, 1), (1, 2, 3), (4, 2, 1))  # Q4 has one triple


def written(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def rows(graph: KnowledgeGraph, edges: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(row) for row in np.stack(triples_of(graph, edges), 1).tolist()}


def every(split: Split) -> list[tuple[int, ...]]:
    return [tuple(row) for name in ("valid", "test") for row in split.held_out[name].tolist()]


def test_shares_are_disjoint_complete_and_keyed_by_the_triple() -> None:
    graph = torus()
    split = split_graph(graph, 0, {"valid": 0.1, "test": 0.2})
    train, held = rows(graph, split.train), every(split)
    assert len(set(held)) == len(held)
    assert not train & set(held)
    assert train | set(held) == rows(graph, np.arange(graph.n_triples))
    assert 16 <= len(split.held_out["valid"]) <= 50
    assert 40 <= len(split.held_out["test"]) <= 90
    assert split.entities.all()
    assert split.relations.all()
    assert set(every(split_graph(graph, 1, {"valid": 0.1, "test": 0.2}))) != set(held)
    assert set(map(tuple, split_graph(graph, 0, {"test": 0.2}).held_out["test"].tolist())) <= set(held)


def test_no_entity_or_relation_loses_its_last_triple() -> None:
    for seed in range(20):
        split = split_graph(SMALL, seed, {"valid": 0.5})
        assert split.entities.all()
        assert split.relations.all()
        assert (3, 1, 0) not in every(split)  # Q4's


def test_a_file_takes_its_triples_out_of_training(tmp_path: Path) -> None:
    path = written(tmp_path / "valid.txt", "Q1\tP1\tQ2", "Q2\tP2\tQ3")  # the second is not in the graph
    split = split_graph(SMALL, 0, {"valid": path})
    assert (0, 0, 1) not in rows(SMALL, split.train)
    assert len(split.train) == 4
    assert split.held_out["valid"].tolist() == [[0, 0, 1], [1, 1, 2]]
    assert split.beyond.tolist() == [[1, 1, 2]]


def test_what_cannot_be_ranked_is_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "test.txt", "Q1\tP1\tQ2", "Q4\tP2\tQ1", "Q1\tP9\tQ2", "Q8\tP1\tQ2")
    with warns(
        f"--test {path}: 3 of 4 triples cannot be ranked: 2 name what the graph lacks, the others 1 entities and 0 "
        "relations that occur only in held-out triples"
    ):
        split = split_graph(SMALL, 0, {"test": path})
    assert split.held_out["test"].tolist() == [[0, 0, 1]]
    assert split.entities.tolist() == [True, True, True, False]


REFUSED = {
    "unknown relation": ("Q1\tP9\tQ2", "--valid {path}: every triple has an entity or a relation that .* Q1 P9 Q2"),
    "only orphans": ("Q4\tP2\tQ1", "--valid {path}: none of its triples can be ranked"),
    "another format": ("Q1 P1 Q2", "{path}:1: expected head<TAB>relation<TAB>tail"),
    "everything": ("Q1\tP1\tQ2\nQ2\tP1\tQ3\nQ3\tP1\tQ1\nQ1\tP2\tQ3\nQ4\tP2\tQ1", "nothing is left to train on"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_cannot_serve_are_refused(case: str, tmp_path: Path) -> None:
    lines, message = REFUSED[case]
    path = written(tmp_path / "valid.txt", lines)
    with pytest.raises(UserError, match=message.format(path=path)):
        split_graph(SMALL, 0, {"valid": path})


def test_an_empty_graph_is_refused() -> None:
    with pytest.raises(UserError, match="the dataset's graph has no triple"):
        split_graph(KnowledgeGraph.from_triples(np.zeros((0, 3), dtype=np.int32)), 0, {})


def test_a_sample_is_the_same_every_time_and_another_by_seed() -> None:
    triples = np.arange(300).reshape(100, 3)
    found = sample(triples, 10, 0)
    assert np.array_equal(found, sample(triples, 10, 0))
    assert not np.array_equal(found, sample(triples, 10, 1))
    assert len(np.unique(found, axis=0)) == 10
    assert np.array_equal(sample(triples, None, 0), triples)
    assert np.array_equal(sample(triples, 100, 0), triples)
