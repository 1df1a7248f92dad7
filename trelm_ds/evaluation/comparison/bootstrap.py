"""Paired bootstrap of the difference of two models (Efron & Tibshirani, 1993; Koehn, 2004): pure functions of arrays.

Two things are left to chance in a fine-tuned score: which examples the test set has, and the seed of each run. Both are
resampled. Examples are drawn with replacement, the same ones for both models, since both were asked the same questions;
seeds are drawn for each model on its own, since its runs are other runs.

A few seeds say little of how much seeds differ, and a plain bootstrap of them takes that for certain. Two remedies: of
S seeds S - 1 are drawn, since the mean of S would vary by (S - 1) / S of what the mean of S new runs does (Rao & Wu,
1988); and what the drawn seeds differ from the mean is multiplied so that it has the tails of Student's distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from trelm_ds.evaluation.comparison.metrics import Metrics

_CHUNK = 1 << 19  # counts at a time, which a cache holds
_DRAWS_PER_CATEGORY = 8  # a multinomial category costs about as much as the draws of so many examples


class Interval(NamedTuple):
    """What the bootstrap says about a difference.

    Attributes:
        difference: the measured one.
        low, high: bounds of its 95% interval.
        p: of no difference, two-sided.
    """

    difference: float
    low: float
    high: float
    p: float


def resampled_scores(
    metrics: Metrics,
    signatures: Sequence[np.ndarray],
    strata: np.ndarray | None,
    resamples: int,
    generator: np.random.Generator,
) -> list[dict[str, np.ndarray]]:
    """Score every run on the same resamples of the examples.

    Args:
        signatures: of each run, [n, k], as `metrics` makes them.
        strata: int [n], groups within which examples are drawn; None: all are one.

    Returns:
        for each run, the metrics of every resample, float64 [resamples] by name.
    """
    stratum = np.zeros(len(signatures[0])) if strata is None else strata
    # Examples that are alike for all runs are counted, not drawn one by one.
    kinds, number = np.unique(np.column_stack([stratum, *signatures]), axis=0, return_counts=True)
    parts = np.split(number, np.flatnonzero(np.diff(kinds[:, 0])) + 1)
    edges = np.cumsum([1, *(signature.shape[1] for signature in signatures)])
    of_runs = [kinds[:, first:last] for first, last in pairwise(edges)]
    found: list[list[dict[str, np.ndarray]]] = [[] for _ in signatures]
    step = max(1, _CHUNK // len(number))
    for start in range(0, resamples, step):
        b = min(step, resamples - start)
        counts = np.concatenate([_counts(part, b, generator) for part in parts], axis=1).astype(np.float64)
        for chunks, signature in zip(found, of_runs, strict=True):
            chunks.append(metrics.scores(counts, signature))
    return [{name: np.concatenate([one[name] for one in chunks]) for name in chunks[0]} for chunks in found]


def _counts(number: np.ndarray, b: int, generator: np.random.Generator) -> np.ndarray:
    """Draw as many examples as there are, b times, and count them by kind: int [b, kinds]."""
    n, kinds = int(number.sum()), len(number)
    if kinds * _DRAWS_PER_CATEGORY < n:
        return generator.multinomial(n, number / n, size=b)
    drawn = np.repeat(np.arange(kinds), number)[generator.integers(n, size=(b, n))]
    return np.bincount((drawn + np.arange(b)[:, None] * kinds).ravel(), minlength=b * kinds).reshape(b, kinds)


def mean_over_seeds(
    scores: Sequence[np.ndarray], generator: np.random.Generator | None, tails: np.ndarray | float = 1.0
) -> np.ndarray:
    """Average runs [S] of [resamples] over S - 1 seeds that are drawn for every resample; [resamples].

    Args:
        generator: draws the seeds; None: the single run is no draw, such as a model that is asked without training.
        tails: `student_tails`, by which the drawn seeds' mean is moved away from that of all.
    """
    of_runs = np.stack(scores)
    mean: np.ndarray = of_runs.mean(0)
    if generator is None:
        return mean
    runs, resamples = of_runs.shape
    drawn = generator.integers(runs, size=(runs - 1, resamples))
    return mean + tails * (np.take_along_axis(of_runs, drawn, axis=0).mean(0) - mean)


def student_tails(freedom: int, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Draw how much farther off the seeds may be than their few values show, float64 [resamples].

    A normal variable that is multiplied by such a number has Student's distribution with `freedom` degrees of freedom.
    """
    return np.sqrt(freedom / generator.chisquare(freedom, size=resamples))


def interval_of(difference: float, resampled: np.ndarray) -> Interval:
    """Find the symmetric bootstrap interval of a difference (Hall, 1988) and the p-value that goes with it.

    How far the resamples' differences are from the measured one says how far that is from the true one: the interval
    is as wide as 95% of those distances, and p is the share of them that reach the measured difference, which counts
    as one of the resamples. So p is at most 0.05 where the interval leaves out 0.
    """
    resamples = len(resampled)
    distances = np.sort(np.abs(resampled - difference))
    reach = float(distances[min(resamples, math.ceil(0.95 * (resamples + 1))) - 1])
    # Rounding must not decide whether equal numbers are equal.
    p = (1 + int((distances >= abs(difference) - 1e-12).sum())) / (resamples + 1)
    return Interval(difference, difference - reach, difference + reach, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for how many there are (Holm, 1979); holds however they depend on each other."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(1, np.maximum.accumulate(np.asarray(p_values)[order] * factors))
    return corrected.tolist()
