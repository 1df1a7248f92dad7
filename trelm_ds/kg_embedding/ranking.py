"""Filtered link prediction: the rank of a triple's true entity among all entities (Bordes et al. 2013, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trelm_ds.kg_embedding.scores import Method
from trelm_ds.kg_embedding.updates import Embeddings
from trelm_ds.knowledge import KnowledgeGraph

_SCORES = 1 << 26  # held at a time: 256 MB
_BLOCK = 1 << 20  # numbers computed at a time: 4 MB
_MOST_QUERIES = 512
HITS = (1, 3, 10)


class KnownTriples:
    """All triples that are known to be true: those of the graph, and others.

    Args:
        graph: of the dataset.
        others: int [n, 3], rows of head, relation and tail of triples that the graph lacks.
    """

    def __init__(self, graph: KnowledgeGraph, others: np.ndarray) -> None:
        self._by_head = (graph.out_offsets, graph.out_relations, graph.out_entities)
        self._by_tail = (graph.in_offsets, graph.in_relations, graph.in_entities)
        self._others: dict[tuple[bool, int, int], list[int]] = {}
        for head, relation, tail in others.tolist():
            self._others.setdefault((True, head, relation), []).append(tail)
            self._others.setdefault((False, tail, relation), []).append(head)

    def answers(self, known: int, relation: int, tails: bool) -> np.ndarray:
        """Return the rows of all true tails of a head and relation, or heads of a tail and relation: int64 [m]."""
        offsets, relations, entities = self._by_head if tails else self._by_tail
        part = slice(offsets[known], offsets[known + 1])
        found = entities[part][relations[part] == relation].astype(np.int64)
        others = self._others.get((tails, known, relation), [])
        return np.concatenate([found, np.array(others, dtype=np.int64)])


def rank_triples(
    embeddings: Embeddings, method: Method, triples: np.ndarray, known: KnownTriples, advance: Callable[[int], None]
) -> np.ndarray:
    """Rank the true tail, then the true head, of every triple among all entities that do not make another true triple.

    A tie counts half: the mean of the best and the worst rank ("realistic" in PyKEEN), so that a model that gives all
    entities one score gets no better rank than chance. Collective; every rank compares with its own entities.

    Args:
        triples: int [n, 3], rows of head, relation and tail.
        advance: told of every batch of triples how many they were.

    Returns:
        float64 [n, 2], ranks from 1 on: of the tail, of the head.
    """
    group = embeddings.table.group
    largest_shard = -(-embeddings.n_entities // group.world_size)
    batch = max(1, min(_MOST_QUERIES, _SCORES // largest_shard))
    ranks = np.empty((len(triples), 2))
    for start in range(0, len(triples), batch):
        part = triples[start : start + batch].astype(np.int64)
        for column, tails in enumerate((True, False)):
            ranks[start : start + batch, column] = _ranks(embeddings, method, part, known, tails)
        advance(len(part))
    return ranks


def _ranks(embeddings: Embeddings, method: Method, triples: np.ndarray, known: KnownTriples, tails: bool) -> np.ndarray:
    group, (heads, relations, tail_rows) = embeddings.table.group, triples.T
    given, asked = (heads, tail_rows) if tails else (tail_rows, heads)
    rows = torch.from_numpy(np.concatenate([given, relations + embeddings.n_entities]))
    known_rows, relation_rows = embeddings.table.start_lookup(rows).wait().chunk(2)
    queries = method.query(known_rows, relation_rows, tails)
    scores = _all_scores(method, queries, embeddings.local_entities)
    mine = np.flatnonzero(asked % group.world_size == group.rank)
    own = torch.from_numpy(mine).to(scores.device), torch.from_numpy(asked[mine] // group.world_size).to(scores.device)
    truth = torch.zeros(len(triples))
    truth[torch.from_numpy(mine)] = scores[own].cpu()
    truth = group.sum(truth).to(scores.device)  # one rank's score and zeros
    for query, (entity, relation) in enumerate(zip(given.tolist(), relations.tolist(), strict=True)):
        true = np.append(known.answers(entity, relation, tails), asked[query])
        here = true[true % group.world_size == group.rank] // group.world_size
        scores[query, torch.from_numpy(here).to(scores.device)] = -torch.inf
    return 1 + group.sum(_half_ties(scores, truth).cpu()).numpy()


def _all_scores(method: Method, queries: Tensor, entities: Tensor) -> Tensor:
    """Score queries [n, D] with entities [k, D]: [n, k]. In blocks, whose intermediate results stay in the cache."""
    numbers = queries.numel() if method.pair_numbers == "D" else len(queries)
    block = max(1, _BLOCK // numbers)
    scores = queries.new_empty(len(queries), len(entities))
    for start in range(0, len(entities), block):
        scores[:, start : start + block] = method.scores(queries, entities[start : start + block])
    return scores


def _half_ties(scores: Tensor, truth: Tensor) -> Tensor:
    """Count the scores [n, k] above the truth's [n], an equal one as half: float64 [n]."""
    found = torch.zeros(len(truth), dtype=torch.float64, device=truth.device)
    for part in scores.split(max(1, _BLOCK // len(truth)), dim=1):
        found += (part > truth[:, None]).sum(1)
        found += (part == truth[:, None]).sum(1) / 2
    return found


def summary(ranks: np.ndarray) -> dict[str, Any]:
    """Summarise ranks [n, 2]: n, MRR and Hits@k over both directions, as shares, and the same of each direction."""
    means = {"mrr": lambda of: float((1 / of).mean())} | {
        f"hits@{k}": lambda of, k=k: float((of <= k).mean()) for k in HITS
    }
    result: dict[str, Any] = {"triples": len(ranks)} | {name: mean(ranks) for name, mean in means.items()}
    for column, direction in enumerate(("tails", "heads")):
        result[direction] = {name: mean(ranks[:, column]) for name, mean in means.items()}
    return result
