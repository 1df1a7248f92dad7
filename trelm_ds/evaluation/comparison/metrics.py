"""The task's metrics on many resamples at once: what `scorers` computes of a list, as matrix products over counts.

A resample is given as how often it holds each example. `signature` says what of an example a metric looks at, as a row
of numbers, so that examples with the same row can be counted together; `scores` computes the metric of every resample.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Scores = dict[str, np.ndarray]
_ROUNDING = 1e-12


class Metrics(Protocol):
    """Metrics that are computed of the same signature."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names that results have for them."""
        ...

    def signature(self, gold: Sequence[Any], predicted: Sequence[Any]) -> np.ndarray:
        """Return float64 [n, k]: what of every example the metrics depend on."""
        ...

    def scores(self, counts: np.ndarray, signature: np.ndarray) -> Scores:
        """Compute the metrics of b resamples, float64 [b] by name.

        Args:
            counts: float64 [b, g], how often a resample holds examples of each signature.
            signature: float64 [g, k].
        """
        ...


def _of(kind: str) -> tuple[str, ...]:
    return (f"{kind}_precision", f"{kind}_recall", f"{kind}_f1")


@dataclass(frozen=True)
class Accuracy:
    """Share of equal labels."""

    names = ("accuracy",)

    def signature(self, gold: Sequence[str], predicted: Sequence[str]) -> np.ndarray:
        return np.array([[true == given] for true, given in zip(gold, predicted, strict=True)], dtype=np.float64)

    def scores(self, counts: np.ndarray, signature: np.ndarray) -> Scores:
        return {"accuracy": _ratio(counts @ signature[:, 0], counts.sum(1))}


@dataclass(frozen=True)
class F1:
    """F1 of one label, as `scorers.f1`."""

    positive: str = "1"

    names = ("f1",)

    def signature(self, gold: Sequence[str], predicted: Sequence[str]) -> np.ndarray:
        pairs = zip(gold, predicted, strict=True)
        return np.array([[true == self.positive, given == self.positive] for true, given in pairs], dtype=np.float64)

    def scores(self, counts: np.ndarray, signature: np.ndarray) -> Scores:
        true, given = signature.T
        return {"f1": _ratio(2 * (counts @ (true * given)), counts @ true + counts @ given)}


@dataclass(frozen=True)
class Matthews:
    """Matthews' correlation for any number of classes (Gorodkin, 2004), as `scorers.matthews`."""

    names = ("matthews",)

    def signature(self, gold: Sequence[str], predicted: Sequence[str]) -> np.ndarray:
        return _label_numbers(gold, predicted)

    def scores(self, counts: np.ndarray, signature: np.ndarray) -> Scores:
        true, given, right = _sums_by_label(counts, signature)
        n, correct = counts.sum(1), right.sum(1)
        covariance = correct * n - (true * given).sum(1)
        of_true, of_given = n**2 - (true**2).sum(1), n**2 - (given**2).sum(1)
        return {"matthews": _ratio(covariance, np.sqrt(of_true * of_given))}


@dataclass(frozen=True)
class Pearson:
    """Pearson's correlation, as `scorers.pearson`."""

    names = ("pearson",)

    def signature(self, gold: Sequence[float], predicted: Sequence[float]) -> np.ndarray:
        return np.array([gold, predicted], dtype=np.float64).T

    def scores(self, counts: np.ndarray, signature: np.ndarray) -> Scores:
        x, y = signature.T - signature.T.mean(1, keepdims=True)  # small numbers, whose squares lose nothing
        means = counts @ np.column_stack([x, y, x * x, y * y, x * y]) / counts.sum(1, keepdims=True)
        of_x, of_y, of_xx, of_yy, of_xy = means.T
        return {"pearson": _correlation(of_xy - of_x * of_y, of_xx - of_x**2, of_yy - of_y**2)}


@dataclass(frozen=True)
class Spearman:
    """Spearman's rank correlation with ties by their mean rank, as `scorers.spearman`."""

    names = ("spearman",)

    def signature(self, gold: Sequence[float], predicted: Sequence[float]) -> np.ndarray:
        return np.array([gold, predicted], dtype=np.float64).T

    def scores(self, counts: np.ndarray, signature: np.ndarray) -> Scores:
        x, y = (_mean_ranks(counts, values) for values in signature.T)
        n = counts.sum(1)

        def mean(values: np.ndarray) -> np.ndarray:
            return np.einsum("bg,bg->b", counts, values) / n

        return {"spearman": _correlation(mean(x * y), mean(x * x), mean(y * y))}


@dataclass(frozen=True)
class LooseScores:
    """Loose micro and macro scores of sets of types, as `scorers.loose_micro` and `scorers.loose_macro`."""

    names = (*_of("micro"), *_of("macro"))

    def signature(self, gold: Sequence[frozenset[str]], predicted: Sequence[frozenset[str]]) -> np.ndarray:
        pairs = zip(gold, predicted, strict=True)
        return np.array([[len(true & given), len(given), len(true)] for true, given in pairs], dtype=np.float64)

    def scores(self, counts: np.ndarray, signature: np.ndarray) -> Scores:
        right, given, true = signature.T
        of_all, n = counts @ signature, counts.sum(1)
        micro = _prf(_ratio(of_all[:, 0], of_all[:, 1]), _ratio(of_all[:, 0], of_all[:, 2]))
        macro = _prf(counts @ _ratio(right, given) / n, counts @ _ratio(right, true) / n)
        return _named("micro", micro) | _named("macro", macro)


@dataclass(frozen=True)
class RelationMicro:
    """Micro scores without the label that is no relation, as `scorers.relation_micro`."""

    negative: str | None

    names = _of("micro")

    def signature(self, gold: Sequence[str], predicted: Sequence[str]) -> np.ndarray:
        pairs = zip(gold, predicted, strict=True)
        rows = [
            [true == given != self.negative, given != self.negative, true != self.negative] for true, given in pairs
        ]
        return np.array(rows, dtype=np.float64)

    def scores(self, counts: np.ndarray, signature: np.ndarray) -> Scores:
        right, guessed, there = (counts @ signature).T
        precision = np.where(guessed > 0, _ratio(right, guessed), 1.0)
        return _named("micro", _prf(precision, _ratio(right, there)))


@dataclass(frozen=True)
class RelationMacro:
    """Macro scores over the relations that a resample has, as `scorers.relation_macro`."""

    negative: str | None

    names = _of("macro")

    def signature(self, gold: Sequence[str], predicted: Sequence[str]) -> np.ndarray:
        return _label_numbers(gold, predicted, self.negative)

    def scores(self, counts: np.ndarray, signature: np.ndarray) -> Scores:
        true, given, right = _sums_by_label(counts, signature)
        relations = ((true > 0) | (given > 0)).sum(1)  # the others have no score in this resample
        each = _ratio(right, given), _ratio(right, true), _ratio(2 * right, true + given)
        return _named("macro", [_ratio(of_relation.sum(1), relations) for of_relation in each])


@dataclass(frozen=True)
class RankScores:
    """LAMA's scores of the true answers' ranks: a mean over each relation's facts, then over relations; or over all.

    Relations are resampled within themselves, so the number of facts of each is that of the data in every resample.

    Attributes:
        metric: "p_at_1", "p_at_10" or "mrr", or one of these behind "micro_" for the mean over all facts.
    """

    metric: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.metric,)

    def signature(self, gold: Sequence[Hashable], predicted: Sequence[int]) -> np.ndarray:
        """Take the relation of every fact in place of a true label, and the rank of its answer."""
        _, relation, sizes = np.unique(np.array(gold), return_inverse=True, return_counts=True)
        ranks = np.array(predicted, dtype=np.float64)
        name = self.metric.removeprefix("micro_")
        worth = 1 / ranks if name == "mrr" else ranks <= {"p_at_1": 1, "p_at_10": 10}[name]
        share = 1 / len(ranks) if self.metric.startswith("micro_") else 1 / (sizes[relation] * len(sizes))
        return (worth * share)[:, None]

    def scores(self, counts: np.ndarray, signature: np.ndarray) -> Scores:
        return {self.metric: counts @ signature[:, 0]}


def _label_numbers(gold: Sequence[str], predicted: Sequence[str], negative: str | None = None) -> np.ndarray:
    """Number the labels from 0, float64 [n, 2]; `negative` is -1."""
    labels = {label: number for number, label in enumerate(sorted({*gold, *predicted} - {negative}))}
    rows = [[labels.get(true, -1), labels.get(given, -1)] for true, given in zip(gold, predicted, strict=True)]
    return np.array(rows, dtype=np.float64)


def _sums_by_label(counts: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count true, predicted and right labels of every resample by label, each float64 [b, labels]."""
    from scipy.sparse import csr_array

    true, given = numbers.T.astype(np.int64)
    n, labels = len(true), int(max(numbers.max(), 0)) + 1
    # One matrix of three blocks of columns, since the counts are what takes time to go through.
    columns = [true, given + labels, true + 2 * labels]
    chosen = [true >= 0, given >= 0, (true >= 0) & (true == given)]
    rows = np.concatenate([np.flatnonzero(which) for which in chosen])
    at = np.concatenate([column[which] for column, which in zip(columns, chosen, strict=True)])
    choice = csr_array((np.ones(len(rows)), (rows, at)), shape=(n, 3 * labels))
    sums = np.asarray(counts @ choice)
    return sums[:, :labels], sums[:, labels : 2 * labels], sums[:, 2 * labels :]


def _mean_ranks(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Rank values [g] within every resample, equal ones by their mean rank; minus the mean rank, float64 [b, g]."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=np.nan))
    equal = np.add.reduceat(counts[:, order], starts, axis=1)  # [b, distinct values]
    ranks = np.cumsum(equal, axis=1) - (equal - 1) / 2 - (counts.sum(1, keepdims=True) + 1) / 2
    group = np.empty(len(values), dtype=np.int64)
    group[order] = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(values)))
    return ranks[:, group]


def _correlation(covariance: np.ndarray, of_x: np.ndarray, of_y: np.ndarray) -> np.ndarray:
    """Divide covariances by the variances' geometric mean; 0 where either is that of a constant, but for rounding."""
    constant = np.minimum(of_x, of_y) <= _ROUNDING
    return np.where(constant, 0.0, _ratio(covariance, np.sqrt(np.maximum(of_x, 0) * np.maximum(of_y, 0))))


def _prf(precision: np.ndarray, recall: np.ndarray) -> list[np.ndarray]:
    return [precision, recall, _ratio(2 * precision * recall, precision + recall)]


def _named(kind: str, prf: list[np.ndarray]) -> Scores:
    return dict(zip(_of(kind), prf, strict=True))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide; 0 where the divisor is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64))
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
