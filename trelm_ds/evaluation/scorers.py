"""Metrics of classification tasks, each a pure function of gold and predicted labels *by name*.

So permuted ids give the same figures. Shares are between 0 and 1. scikit-learn and scipy compute what they have; what
is written out here are conventions of the field: the loose scores of entity typing (Ling & Weld, 2012) and those of
TACRED's official scorer (Zhang et al., 2017).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence, Set
from typing import NamedTuple


class Prf(NamedTuple):
    """Precision, recall and their harmonic mean."""

    precision: float
    recall: float
    f1: float

    @classmethod
    def of(cls, precision: float, recall: float) -> Prf:
        """Add the F1, which is 0 where both are."""
        total = precision + recall
        return cls(precision, recall, 2 * precision * recall / total if total else 0.0)


def loose_micro(gold: Sequence[Set[str]], predicted: Sequence[Set[str]]) -> Prf:
    """Score sets of types over all of them together: shares of the predicted and of the true types that are right.

    Without any predicted type the precision is 0.
    """
    right = sum(len(true & given) for true, given in _pairs(gold, predicted))
    return Prf.of(_share(right, sum(map(len, predicted))), _share(right, sum(map(len, gold))))


def loose_macro(gold: Sequence[Set[str]], predicted: Sequence[Set[str]]) -> Prf:
    """Score sets of types mention by mention and average over all mentions.

    A mention without predicted types has precision 0, one without true types recall 0, as ERNIE's and KEPLER's
    evaluation have it.
    """
    pairs = _pairs(gold, predicted)
    precision = sum(_share(len(true & given), len(given)) for true, given in pairs) / len(pairs)
    recall = sum(_share(len(true & given), len(true)) for true, given in pairs) / len(pairs)
    return Prf.of(precision, recall)


def relation_micro(gold: Sequence[str], predicted: Sequence[str], negative: str | None) -> Prf:
    """Score relations as TACRED's official scorer: over all examples whose gold or predicted relation is one.

    Args:
        negative: name of the label that is no relation, such as "no_relation"; None where every label is one.

    Returns:
        as that scorer: precision 1 where nothing was predicted, recall 0 where there was nothing to find.
    """
    pairs = _pairs(gold, predicted)
    right = sum(true == given != negative for true, given in pairs)
    guessed = sum(given != negative for given in predicted)
    there = sum(true != negative for true in gold)
    return Prf.of(right / guessed if guessed else 1.0, _share(right, there))


def relation_macro(gold: Sequence[str], predicted: Sequence[str], negative: str | None) -> Prf:
    """Average precision, recall and F1 over the relations that are in gold or predicted labels.

    The F1 is the mean of the relations' F1, not that of the means. 0 where there is no relation at all.
    """
    from sklearn.metrics import precision_recall_fscore_support

    _pairs(gold, predicted)
    relations = sorted((set(gold) | set(predicted)) - {negative})
    if not relations:
        return Prf(0.0, 0.0, 0.0)
    found = precision_recall_fscore_support(gold, predicted, labels=relations, average="macro", zero_division=0)
    return Prf(*map(float, found[:3]))


def accuracy(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the share of equal labels."""
    pairs = _pairs(gold, predicted)
    return sum(true == given for true, given in pairs) / len(pairs)


def f1(gold: Sequence[str], predicted: Sequence[str], positive: str) -> float:
    """Return the F1 of one label, as GLUE has it for MRPC and QQP; 0 where it is neither there nor predicted."""
    from sklearn.metrics import f1_score

    _pairs(gold, predicted)
    return float(f1_score(gold, predicted, labels=[positive], average="macro", zero_division=0))


def matthews(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Return Matthews' correlation, as GLUE has it for CoLA; 0 where gold or predictions have one class only."""
    from sklearn.metrics import matthews_corrcoef

    _pairs(gold, predicted)
    if len({*gold, *predicted}) == 1:  # 0 as well, but with a warning
        return 0.0
    return float(matthews_corrcoef(gold, predicted))


def pearson(gold: Sequence[float], predicted: Sequence[float]) -> float:
    """Return Pearson's correlation, as GLUE has it for STS-B; 0 where either is constant."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, gold, predicted)


def spearman(gold: Sequence[float], predicted: Sequence[float]) -> float:
    """Return Spearman's rank correlation, ties by their mean rank; 0 where either is constant."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, gold, predicted)


def _correlation(function: object, gold: Sequence[float], predicted: Sequence[float]) -> float:
    if len(_pairs(gold, predicted)) < 2:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant input, which gives NaN
        value = float(function(gold, predicted).statistic)  # type: ignore[operator]
    return 0.0 if math.isnan(value) else value


def _pairs(gold: Sequence, predicted: Sequence) -> list[tuple]:
    if not gold or len(gold) != len(predicted):
        raise ValueError(f"{len(gold)} true labels, {len(predicted)} predictions; a score needs as many of both")
    return list(zip(gold, predicted, strict=True))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
