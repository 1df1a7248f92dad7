"""Filtered ranks on a graph that is small enough to count by hand, with ties, and over ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.distributed import run_distributed_test
from tests.kg_embedding.graphs import graph_of
from trelm_ds.kg_embedding import ranking
from trelm_ds.kg_embedding.ranking import KnownTriples, rank_triples, summary
from trelm_ds.kg_embedding.scores import METHODS
from trelm_ds.kg_embedding.updates import Embeddings
from trelm_ds.knowledge.tables import TableGroup

CPU = torch.device("cpu")
# Entities on a line, at 0, 1, 2, 2, 3, 7; the relation adds 1.
PLACES = [0.0, 1.0, 2.0, 2.0, 3.0, 7.0, 1.0]
GRAPH = graph_of((1, 1, 2), (1, 1, 3), (2, 1, 3), (2, 1, 5), (3, 1, 4), (5, 1, 6))
NONE = np.zeros((0, 3), dtype=np.int32)


def ignore(_: int) -> None:
    pass


def on_a_line(group: TableGroup) -> Embeddings:
    embeddings = Embeddings(6, 1, 1, CPU, group)
    embeddings.table.fill(lambda rows: torch.tensor(PLACES)[rows][:, None])
    return embeddings


def ranks_of(triples: list[list[int]], beyond: np.ndarray = NONE, group: TableGroup | None = None) -> np.ndarray:
    known = KnownTriples(GRAPH, beyond)
    done: list[int] = []
    found = rank_triples(on_a_line(group or TableGroup()), METHODS["transe"](1), np.array(triples), known, done.append)
    assert sum(done) == len(triples)
    return found


def test_ranks_by_hand() -> None:
    # Q1 (0) P1: distances of 1 from Q1 ... Q6: 1 0 1 1 2 6. Tail Q3 is true and so is Q2, which does not count:
    # none is nearer than 1; Q1 and Q4 are as near: rank 1 + 2/2 = 2. As head of Q3 (2): distances of x + 1 from 2:
    # 1 0 1 1 2 6; Q2 is another true head; Q3 and Q4 are as near as Q1: rank 2.
    # Q5 (3) P1 Q6 (7): of 4, distances 4 3 2 2 1 3: Q2, as far, counts half, Q3, Q4 and Q5 whole: rank 4.5. As head of
    # Q6: |x + 1 - 7| = 6 5 4 4 3 1: Q6 itself is nearest, Q5 second.
    assert ranks_of([[0, 0, 2], [4, 0, 5]]).tolist() == [[2.0, 2.0], [4.5, 2.0]]


def test_held_out_triples_that_the_graph_lacks_are_filtered_too() -> None:
    beyond = np.array([[4, 0, 4], [5, 0, 5]], dtype=np.int32)
    assert ranks_of([[4, 0, 5]], beyond).tolist() == [[3.5, 1.0]]
    assert ranks_of([[4, 0, 4]], beyond)[0, 0] == 1.0


def test_equal_scores_rank_as_chance_does() -> None:
    embeddings = Embeddings(6, 1, 4, CPU, TableGroup())
    for name in METHODS:
        found = rank_triples(embeddings, METHODS[name](), np.array([[4, 0, 5]]), KnownTriples(GRAPH, NONE), ignore)
        assert found.tolist() == [[3.5, 3.5]]  # the mean of 1 to 6


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("norm", [1, 2])
def test_blocks_and_batches_do_not_matter(name: str, norm: int, monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = Embeddings(6, 1, 4, CPU, TableGroup())
    embeddings.initialize(0, 1.0)
    triples, known = np.array([[0, 0, 1], [0, 0, 2], [4, 0, 5]]), KnownTriples(GRAPH, NONE)
    found = rank_triples(embeddings, METHODS[name](norm), triples, known, ignore)
    for constant, value in (("_SCORES", 12), ("_BLOCK", 4), ("_MOST_QUERIES", 2)):
        monkeypatch.setattr(ranking, constant, value)
    assert np.array_equal(rank_triples(embeddings, METHODS[name](norm), triples, known, ignore), found)


def ranked_together() -> list[list[float]]:
    dist.init_process_group("gloo")
    found: list[list[float]] = ranks_of([[0, 0, 2], [4, 0, 5]], group=TableGroup.of_all_ranks(CPU)).tolist()
    dist.destroy_process_group()
    return found


def test_every_rank_knows_the_ranks_among_all_entities() -> None:
    assert run_distributed_test(ranked_together, 4) == [[[2.0, 2.0], [4.5, 2.0]]] * 4


def test_summary() -> None:
    found = summary(np.array([[1.0, 4.0], [2.0, 20.0]]))
    assert found["triples"] == 2
    assert found["mrr"] == pytest.approx((1 + 1 / 4 + 1 / 2 + 1 / 20) / 4)
    assert (found["hits@1"], found["hits@3"], found["hits@10"]) == (0.25, 0.5, 0.75)
    assert found["tails"]["mrr"] == 0.75
    assert found["heads"]["hits@10"] == 0.5
