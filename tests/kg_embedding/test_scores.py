"""Score functions: against the equations written out in numpy, in both directions, in chunks, and their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trelm_ds.kg_embedding.scores import METHODS, Method

D, N, K = 6, 4, 5
CASES = [("transe", 1), ("transe", 2), ("distmult", 2), ("rotate", 1), ("rotate", 2)]


def by_hand(name: str, norm: int, head: np.ndarray, relation: np.ndarray, tail: np.ndarray) -> float:
    if name == "distmult":
        return float((head * relation * tail).sum())
    if name == "transe":
        return -float(np.linalg.norm(head + relation - tail, norm))
    h, r, t = (row[: D // 2] + 1j * row[D // 2 :] for row in (head, relation, tail))
    return -float(np.linalg.norm(h * r / np.abs(r) - t, norm))


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("name", "norm"), CASES)
@pytest.mark.parametrize("tails", [True, False])
def test_scores_are_those_of_the_papers(name: str, norm: int, tails: bool) -> None:
    method: Method = METHODS[name](norm)
    known, relations, others = drawn(N, D), drawn(N, D + 1)[:, :D], drawn(K, D)
    queries = method.query(known, relations, tails)
    found = method.scores(queries, others)
    for query in range(N):
        for other in range(K):
            ends = (known[query], others[other]) if tails else (others[other], known[query])
            expected = by_hand(name, norm, ends[0].numpy(), relations[query].numpy(), ends[1].numpy())
            assert found[query, other].item() == pytest.approx(expected, rel=1e-9)
    assert torch.allclose(method.pairs(queries, others[:N]), found.diagonal())


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_chunks_are_scored_one_by_one(name: str, norm: int) -> None:
    method = METHODS[name](norm)
    queries, entities = drawn(3, N, D), drawn(3, K, D)
    expected = torch.stack([method.scores(q, e) for q, e in zip(queries, entities, strict=True)])
    assert torch.allclose(method.scores(queries, entities), expected)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_gradients_are_finite_where_a_distance_is_zero(name: str, norm: int) -> None:
    method = METHODS[name](norm)
    rows = torch.zeros(2, D, requires_grad=True)
    (method.pairs(method.query(rows, rows, True), rows).sum() + method.scores(rows, rows).sum()).backward()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()


def test_relations_of_rotate_lie_on_the_unit_circle() -> None:
    rows = METHODS["rotate"]().relations_of(drawn(N, D))
    assert torch.allclose(rows[:, : D // 2].square() + rows[:, D // 2 :].square(), torch.ones(N, D // 2).double())
