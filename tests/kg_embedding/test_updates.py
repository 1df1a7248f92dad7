"""A step: its loss by hand, its sparse update against autograd on a dense table, and the same on several ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.distributed import run_distributed_test
from tests.kg_embedding.graphs import torus
from trelm_ds.kg_embedding.batches import Chunks, TripleBatches
from trelm_ds.kg_embedding.scores import METHODS
from trelm_ds.kg_embedding.updates import Embeddings, Objective
from trelm_ds.knowledge.tables import TableGroup

CPU, E, R, D, BATCH = torch.device("cpu"), 64, 5, 8, 64


def objective(name: str = "transe", **changes: float) -> Objective:
    return Objective(METHODS[name](), **{"margin": 3.0, "temperature": 1.0, "regularization": 0.0} | changes)  # type: ignore[arg-type]


def chunks_of(step: int, rank: int = 0, world_size: int = 1) -> Chunks:
    graph = torus()
    edges = np.arange(graph.n_triples)
    return TripleBatches(graph, edges, BATCH, 16, 8, 0, rank, world_size)(step)


def dense_loss(of: Objective, table: Tensor, chunks: Chunks) -> Tensor:
    """The mean loss, triple by triple, on the whole table."""
    total = table.new_zeros(())
    for chunk, tails in enumerate(chunks.corrupt_tails):
        for head, relation, tail in zip(*(rows[chunk] for rows in chunks[:3]), strict=True):

            def score(h: int, t: int, r: int = relation) -> Tensor:
                return of.method.pairs(of.method.query(table[h], table[E + r], True), table[t])

            known = [other for other in chunks.negatives[chunk] if other != (tail if tails else head)]
            negative = torch.stack([score(head, other) if tails else score(other, tail) for other in known])
            weights = torch.softmax(of.temperature * negative.detach(), 0)
            total = total - torch.sigmoid(of.margin + score(head, tail)).log() / 2
            total = total - (weights * torch.sigmoid(-of.margin - negative).log()).sum() / 2
            total = total + of.regularization * table[[head, E + relation, tail]].abs().pow(3).sum()
    return total / BATCH


def test_the_loss_of_one_triple_by_hand() -> None:
    embeddings = Embeddings(3, 1, 1, CPU, TableGroup())
    embeddings.table.local.copy_(torch.tensor([[0.0], [2.0], [5.0], [1.0]]))  # three entities, a relation
    one = np.array([[0]])
    chunks = Chunks(one, one, one + 1, np.array([[1, 2]]), np.array([True]))
    # d(0, 1) = |0 + 1 - 2| = 1, d(0, 2) = 4; entity 1 among the negatives is the positive itself, so 2 has all weight
    expected = (math.log(1 + math.exp(-(3 - 1))) + math.log(1 + math.exp(-(4 - 3)))) / 2
    assert embeddings.step(objective(), chunks, 1, 0.1) == pytest.approx(expected, rel=1e-5)
    assert torch.equal(embeddings.sums.local[:, 0] == 0, torch.tensor([False, False, False, False]))


@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_row_wise_adagrad_on_the_dense_gradient(name: str) -> None:
    of = objective(name, regularization=0.01)
    embeddings = Embeddings(E, R, D, CPU, TableGroup())
    embeddings.initialize(0, 1.0)
    table, sums = embeddings.table.local.double(), torch.zeros(E + R, 1).double()
    for step in range(3):
        chunks = chunks_of(step)
        table.requires_grad_()
        loss = dense_loss(of, table, chunks)
        (gradient,) = torch.autograd.grad(loss, table)
        sums += gradient.square().mean(1, keepdim=True)
        table = (table - 0.1 * gradient / (sums.sqrt() + 1e-10)).detach()
        assert embeddings.step(of, chunks, BATCH, 0.1) == pytest.approx(loss.item(), rel=1e-5)
        torch.testing.assert_close(embeddings.table.local.double(), table, rtol=1e-3, atol=1e-4)


def test_rows_outside_the_batch_stay_as_they_are() -> None:
    embeddings = Embeddings(E, R, D, CPU, TableGroup())
    embeddings.initialize(0, 1.0)
    before = embeddings.table.local.clone()
    one = np.array([[0]])
    embeddings.step(objective(), Chunks(one, one, one + 1, np.array([[2, 3]]), np.array([False])), 1, 0.1)
    changed = (embeddings.table.local != before).any(1)
    assert changed.nonzero()[:, 0].tolist() == [0, 1, 2, 3, E]
    assert torch.equal(changed, embeddings.sums.local[:, 0] > 0)


def trained_on_ranks(steps: int) -> tuple[Tensor, float]:
    dist.init_process_group("gloo")
    group = TableGroup.of_all_ranks(CPU)
    embeddings = Embeddings(E, R, D, CPU, group)
    embeddings.initialize(0, 1.0)
    loss = 0.0
    for step in range(steps):
        loss = embeddings.step(objective(), chunks_of(step, group.rank, group.world_size), BATCH, 0.1)
    dist.destroy_process_group()
    return embeddings.table.local, loss


@pytest.mark.parametrize("world_size", [2, 5])  # of 5 ranks one has no chunk
def test_ranks_compute_what_one_does(world_size: int) -> None:
    ranks = run_distributed_test(trained_on_ranks, world_size, 5)
    (alone, loss) = run_distributed_test(trained_on_ranks, 1, 5)[0]
    for rank, (shard, _) in enumerate(ranks):
        torch.testing.assert_close(shard, alone[rank::world_size], rtol=1e-4, atol=1e-5)
    assert sum(part for _, part in ranks) == pytest.approx(loss, rel=1e-5)
