"""Steps of triples: every pass sees each once, negatives and directions, and the same on any number of ranks."""

from __future__ import annotations

import numpy as np

from tests.kg_embedding.graphs import torus
from trelm_ds.kg_embedding.batches import Chunks, TripleBatches, triples_of

GRAPH = torus()  # 320 triples
EDGES = np.arange(0, GRAPH.n_triples, 2)


def batches(rank: int = 0, world_size: int = 1, seed: int = 0) -> TripleBatches:
    return TripleBatches(GRAPH, EDGES, 48, 12, 7, seed, rank, world_size)


def rows(chunks: Chunks) -> np.ndarray:
    return np.stack([chunks.heads, chunks.relations, chunks.tails], -1).reshape(-1, 3)


def test_each_pass_has_every_training_triple_once_in_another_order() -> None:
    seen = np.concatenate([rows(batches()(step)) for step in range(10)])  # 480 = 3 passes of 160
    expected = np.stack(triples_of(GRAPH, EDGES), -1)
    passes = seen.reshape(3, 160, 3)
    for one in passes:
        assert np.array_equal(np.unique(one, axis=0), np.unique(expected, axis=0))
    assert not np.array_equal(passes[0], passes[1])


def test_positions_become_the_triples_of_the_graph() -> None:
    found = np.stack(triples_of(GRAPH, np.arange(GRAPH.n_triples)), -1)
    heads = np.repeat(np.arange(len(GRAPH.entities)), np.diff(GRAPH.out_offsets))
    assert np.array_equal(found, np.stack([heads, GRAPH.out_relations, GRAPH.out_entities], -1))


def test_heads_and_tails_are_corrupted_in_turn() -> None:
    first, second = batches()(0), batches()(1)
    assert first.corrupt_tails.tolist() == [True, False, True, False]
    assert np.array_equal(second.corrupt_tails, ~first.corrupt_tails)


def test_negatives_are_any_entities_anew_in_every_chunk_and_step() -> None:
    drawn = np.concatenate([batches()(step).negatives for step in range(200)])
    assert drawn.shape == (800, 7)
    assert len(np.unique(drawn, axis=0)) == 800
    counts = np.bincount(drawn.ravel(), minlength=64)
    assert len(counts) == 64
    assert 0.5 < counts.min() / counts.mean() < counts.max() / counts.mean() < 1.6
    assert not np.array_equal(batches(seed=1)(0).negatives, batches()(0).negatives)


def test_ranks_share_the_chunks_of_one() -> None:
    alone = batches()(5)
    for part in range(4):
        for rank in range(3):
            mine = batches(rank, 3)(5)
            assert np.array_equal(mine[part], alone[part][rank::3])
