"""The bootstrap against cases that can be computed by hand, and against simulated models."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import t

from trelm_ds.evaluation.comparison.bootstrap import (
    _counts,
    holm,
    interval_of,
    mean_over_seeds,
    resampled_scores,
    student_tails,
)
from trelm_ds.evaluation.comparison.metrics import Accuracy


def accuracies(*runs: list[int], resamples: int = 500, strata: list[int] | None = None) -> list[np.ndarray]:
    """Resampled accuracy of each run; a run says which of its answers are right."""
    signatures = [np.array(run, dtype=float)[:, None] for run in runs]
    given = None if strata is None else np.array(strata)
    found = resampled_scores(Accuracy(), signatures, given, resamples, np.random.default_rng(1))
    return [of_run["accuracy"] for of_run in found]


def test_equal_models_have_no_difference_and_p_1() -> None:
    first, second = accuracies([1, 0, 1, 1], [1, 0, 1, 1])
    assert (first == second).all()  # the same examples for both
    assert interval_of(0.0, second - first) == (0, 0, 0, 1)


def test_a_model_that_is_better_on_every_example_has_the_smallest_p() -> None:
    worse, better = accuracies([0] * 9, [1] * 9, resamples=999)
    assert interval_of(1.0, better - worse) == (1, 1, 1, 1 / 1000)


def test_every_resample_of_two_examples() -> None:
    """One right of two: accuracy 0, 1/2, 1 in 1/4, 1/2, 1/4 of the resamples."""
    (found,) = accuracies([1, 0], resamples=20_000)
    shares = [float((found == value).mean()) for value in (0, 0.5, 1)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.015)


def test_the_interval_and_p_by_hand() -> None:
    """19 resamples: the 19th smallest distance is reached by 1 of 20 as p counts, the measured one among them."""
    resampled = 0.3 + np.arange(1, 20) / 100  # distances 0.01 ... 0.19
    found = interval_of(0.3, resampled)
    assert (found.low, found.high) == pytest.approx((0.3 - 0.19, 0.3 + 0.19))
    assert found.p == 1 / 20
    assert interval_of(0.185, 0.185 + np.arange(1, 20) / 100).p == 2 / 20  # 0.19 reaches it
    assert interval_of(-0.185, -0.185 - np.arange(1, 20) / 100).p == 2 / 20


@pytest.mark.parametrize("seed", range(20))
def test_p_is_small_exactly_where_the_interval_leaves_out_0(seed: int) -> None:
    draw = np.random.default_rng(seed)
    found = interval_of(1.96, draw.normal(1.96, 1, size=999))
    assert (found.p <= 0.05) == (not found.low <= 0 <= found.high)


def test_examples_stay_in_their_stratum() -> None:
    """All of the first stratum are right, none of the second: every resample has as many of each."""
    (found,) = accuracies([1, 1, 1, 0, 0], strata=[0, 0, 0, 1, 1])
    assert (found == 3 / 5).all()
    (found,) = accuracies([1, 0, 1, 0, 1], strata=[0, 1, 0, 1, 0])  # in whatever order
    assert (found == 3 / 5).all()


@pytest.mark.parametrize("number", [[1, 2, 3, 4], [100, 200, 700]])  # drawn one by one, and by kind
def test_counts_are_a_draw_with_replacement(number: list[int]) -> None:
    n, of = sum(number), np.array(number)
    drawn = _counts(of, 4000, np.random.default_rng(3))
    assert (drawn.sum(1) == n).all()
    assert drawn.mean(0) == pytest.approx(of, rel=0.05)
    assert drawn.var(0) == pytest.approx(of * (1 - of / n), rel=0.1)


def test_the_mean_over_seeds_varies_as_the_mean_of_new_seeds_does() -> None:
    """Variance s²/S, with the sample variance s²; with all S drawn it would be (S - 1) / S of that."""
    values = np.array([0.1, 0.4, 0.5, 0.9])
    drawn = mean_over_seeds([np.full(40_000, value) for value in values], np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.005)
    assert drawn.var() == pytest.approx(values.var(ddof=1) / 4, rel=0.03)
    possible = {round(sum(three) / 3, 9) for three in product(values, repeat=3)}
    assert {round(value, 9) for value in drawn.tolist()} <= possible
    assert (mean_over_seeds([np.full(3, 0.2)], None) == 0.2).all()


@pytest.mark.parametrize("freedom", [2, 8])
def test_a_normal_variable_with_students_tails(freedom: int) -> None:
    draw = np.random.default_rng(freedom)
    found = draw.normal(size=200_000) * student_tails(freedom, 200_000, draw)
    for share in (0.05, 0.01):
        beyond = float((np.abs(found) > t.ppf(1 - share / 2, freedom)).mean())
        assert beyond == pytest.approx(share, rel=0.08)


def test_tails_move_the_seeds_away_from_their_mean() -> None:
    scores = [np.full(1000, 0.2), np.full(1000, 0.4)]
    near, far = (mean_over_seeds(scores, np.random.default_rng(0), tails) for tails in (1.0, 3.0))
    assert set(near.tolist()) == {0.2, 0.4}
    assert far == pytest.approx(0.3 + 3 * (near - 0.3))


def test_holm_by_hand() -> None:
    """Holm's own steps: 0.01 x 4, 0.02 x 3 = 0.06, 0.03 x 2 = 0.06, and 0.9 once."""
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.04, 0.02]) == pytest.approx([0.04, 0.04])  # never below a smaller one's
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (5, 0.1)])
def test_the_interval_covers_the_true_difference(seeds: int, spread: float) -> None:
    """Models without a true difference on examples of their own difficulty, which both share."""
    draw, covered, times, n = np.random.default_rng(7), 0, 150, 120
    for _ in range(times):
        ease = draw.normal(0.8, 1, size=n)
        runs = []
        for _ in range(2):
            of_model = ease + draw.normal(0, 0.5, size=n)
            runs += [of_model + draw.normal(0, spread) + draw.normal(0, 0.5, size=n) > 0 for _ in range(seeds)]
        found = resampled_scores(Accuracy(), [run[:, None].astype(float) for run in runs], None, 399, draw)
        scores = [of["accuracy"] for of in found]
        chance, tails = (draw, student_tails(2 * seeds - 2, 399, draw)) if seeds > 1 else (None, 1.0)
        resampled = mean_over_seeds(scores[seeds:], chance, tails) - mean_over_seeds(scores[:seeds], chance, tails)
        measured = float(np.mean(runs[seeds:]) - np.mean(runs[:seeds]))
        interval = interval_of(measured, resampled)
        covered += interval.low <= 0 <= interval.high
    assert covered / times > 0.95 - 3 * math.sqrt(0.95 * 0.05 / times)
    assert covered < times  # nor is it so wide that it holds everything
