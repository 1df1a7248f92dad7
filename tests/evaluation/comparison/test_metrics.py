"""Metrics of many resamples at once are those of the scorers on each resample, written out."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from trelm_ds.evaluation import scorers
from trelm_ds.evaluation.comparison.metrics import (
    F1,
    Accuracy,
    LooseScores,
    Matthews,
    Metrics,
    Pearson,
    RankScores,
    RelationMacro,
    RelationMicro,
    Spearman,
)
from trelm_ds.evaluation.tasks.entity_typing import score_typing
from trelm_ds.evaluation.tasks.relation_extraction import score_relation

Draw = Callable[[random.Random], Any]


def of_labels(labels: str) -> Draw:
    return lambda draw: draw.choice(labels)


def of_sets(draw: random.Random) -> frozenset[str]:
    return frozenset(draw.sample("abc", draw.randint(0, 3)))


def of_numbers(draw: random.Random) -> float:
    return 1e4 + draw.randint(0, 4)  # ties, and far from 0


def relation(negative: str | None) -> Callable[..., dict[str, float]]:
    return lambda gold, predicted: score_relation(gold, predicted, negative)


CASES: list[tuple[Metrics, Callable[[Sequence[Any], Sequence[Any]], dict[str, float]], Draw]] = [
    (Accuracy(), lambda g, p: {"accuracy": scorers.accuracy(g, p)}, of_labels("abc")),
    (F1("1"), lambda g, p: {"f1": scorers.f1(g, p, "1")}, of_labels("01")),
    (F1("1"), lambda g, p: {"f1": scorers.f1(g, p, "1")}, of_labels("00000001")),
    (Matthews(), lambda g, p: {"matthews": scorers.matthews(g, p)}, of_labels("0001")),
    (Matthews(), lambda g, p: {"matthews": scorers.matthews(g, p)}, of_labels("abc")),
    (Pearson(), lambda g, p: {"pearson": scorers.pearson(g, p)}, of_numbers),
    (Spearman(), lambda g, p: {"spearman": scorers.spearman(g, p)}, of_numbers),
    (LooseScores(), score_typing, of_sets),
    (RelationMicro("n"), relation("n"), of_labels("nnab")),
    (RelationMicro(None), relation(None), of_labels("nnab")),
    (RelationMacro("n"), relation("n"), of_labels("nnnnnabc")),
    (RelationMacro(None), relation(None), of_labels("nnab")),
]


@pytest.mark.parametrize(("metrics", "score", "target"), CASES)
@pytest.mark.parametrize("n", [2, 7, 40])
def test_equal_to_the_scorer_on_each_resample(metrics: Metrics, score: Any, target: Draw, n: int) -> None:
    draw = random.Random(n)
    gold, predicted = ([target(draw) for _ in range(n)] for _ in range(2))
    counts = np.random.default_rng(n).multinomial(n, np.full(n, 1 / n), size=30).astype(float)
    found = metrics.scores(counts, metrics.signature(gold, predicted))
    assert tuple(found) == metrics.names
    for number, times in enumerate(counts.astype(int)):
        rows = np.repeat(np.arange(n), times)
        expected = score([gold[row] for row in rows], [predicted[row] for row in rows])
        for name, values in found.items():
            assert values[number] == pytest.approx(expected[name], abs=1e-9), name


def test_ranks_average_over_relations_or_over_facts() -> None:
    """Relation a: ranks 1 and 20; b: rank 4."""
    gold, ranks, once = ["a", "b", "a"], [1, 4, 20], np.ones((1, 3))
    expected = {"p_at_1": (1 / 2 + 0) / 2, "p_at_10": (1 / 2 + 1) / 2, "mrr": ((1 + 1 / 20) / 2 + 1 / 4) / 2}
    expected |= {"micro_p_at_1": 1 / 3, "micro_p_at_10": 2 / 3, "micro_mrr": (1 + 1 / 20 + 1 / 4) / 3}
    for name, value in expected.items():
        metrics = RankScores(name)
        assert metrics.scores(once, metrics.signature(gold, ranks))[name][0] == pytest.approx(value)


def test_a_constant_has_no_correlation() -> None:
    for metrics in (Pearson(), Spearman()):
        signature = metrics.signature([0.1] * 5, [0.1, 0.7, 0.3, 0.3, 0.9])
        (value,) = metrics.scores(np.ones((1, 5)), signature).values()
        assert value[0] == 0
        assert not math.isnan(value[0])
