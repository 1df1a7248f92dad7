"""Ranks, P@k, mean reciprocal rank and the majority baseline: pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

METRICS = ("p_at_1", "p_at_10", "mrr")


def ranks_of(scores: Tensor, answers: Tensor) -> Tensor:
    """Rank the true candidate of every row, from 1; of equal scores the first column is the better one.

    The columns are the candidates in ascending order of token id, so a tie is decided the same way for every model, and
    a model that scores all candidates alike is right about the lowest id only.

    Args:
        scores: [n, C].
        answers: int64 [n], column of the true candidate.

    Returns:
        int64 [n].
    """
    own = scores.gather(1, answers[:, None])
    earlier = torch.arange(scores.shape[1], device=scores.device) < answers[:, None]
    return 1 + (scores > own).sum(1) + ((scores == own) & earlier).sum(1)


def scores_of(ranks: Sequence[int]) -> dict[str, float | None]:
    """Compute P@1, P@10 and MRR over the facts; None for each if there is none."""
    if not ranks:
        return dict.fromkeys(METRICS)
    n = len(ranks)
    return {
        "p_at_1": sum(rank <= 1 for rank in ranks) / n,
        "p_at_10": sum(rank <= 10 for rank in ranks) / n,
        "mrr": sum(1 / rank for rank in ranks) / n,
    }


def majority_ranks(answers: Sequence[Hashable]) -> list[int]:
    """Rank every true answer by how often it is the answer, most frequent first: what a constant guess can reach."""
    order = {answer: rank for rank, (answer, _) in enumerate(Counter(answers).most_common(), 1)}
    return [order[answer] for answer in answers]


def score_facts(ranks: Sequence[int], answers: Sequence[Hashable]) -> dict[str, Any]:
    """Score facts of one relation, with the majority baseline of the same facts.

    Args:
        ranks: of the true answer of every fact.
        answers: what identifies that answer.
    """
    return {**scores_of(ranks), "majority_baseline": scores_of(majority_ranks(answers)), "n_facts": len(ranks)}


def macro_average(scores: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Average results of `score_facts` over the relations that have a fact."""
    scored = [score for score in scores if score["n_facts"]]

    def mean(records: list[dict[str, Any]]) -> dict[str, float | None]:
        return {name: sum(one[name] for one in records) / len(records) if records else None for name in METRICS}

    return {
        **mean(scored),
        "majority_baseline": mean([score["majority_baseline"] for score in scored]),
        "n_facts": sum(score["n_facts"] for score in scored),
        "n_relations": len(scored),
    }


def micro_average(relations: Sequence[tuple[Sequence[int], Sequence[Hashable]]]) -> dict[str, Any]:
    """Score all facts of several relations alike; the baseline answers each relation's own most frequent object.

    Args:
        relations: (ranks, answers) of each, as `score_facts` takes them.
    """
    ranks = [rank for found, _ in relations for rank in found]
    majority = [rank for _, answers in relations for rank in majority_ranks(answers)]
    return {**scores_of(ranks), "majority_baseline": scores_of(majority)}
