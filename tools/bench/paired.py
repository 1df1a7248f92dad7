"""Intervals for figures that several seeds gave, and for differences between recipes that ran with the same seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import t

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean with its 95% interval by Student's distribution.

    Attributes:
        mean: of n values.
        half: half the interval's width; infinite for n = 1.
        n: number of values.
    """

    mean: float
    half: float
    n: int

    def __str__(self) -> str:
        """Write `68.1 ± 2.3`, or the mean alone for one value."""
        return f"{self.mean:.1f}" if self.n < 2 else f"{self.mean:.1f} ± {self.half:.1f}"


class Difference(NamedTuple):
    """What one recipe has more than another, seed by seed.

    Attributes:
        interval: of the differences.
        effect: mean difference in standard deviations of the differences (Cohen's d for pairs); None where these are
            all equal or there is one.
    """

    interval: Interval
    effect: float | None

    @property
    def resolved(self) -> bool:
        """Whether the interval leaves out 0; never with one seed."""
        return abs(self.interval.mean) > self.interval.half

    def __str__(self) -> str:
        """Write `+2.3 ± 1.1`, or that the seeds do not tell."""
        text = f"{self.interval.mean:+.1f} ± {self.interval.half:.1f}"
        return text if self.resolved else f"not resolved at n = {self.interval.n} ({text})"

    def to_json(self) -> dict[str, float | int | bool | None]:
        half = self.interval.half
        return {
            "mean": round(self.interval.mean, 2),
            "half": round(half, 2) if math.isfinite(half) else None,
            "effect": None if self.effect is None else round(self.effect, 2),
            "n": self.interval.n,
            "resolved": self.resolved,
        }


def interval(values: Sequence[float]) -> Interval:
    """Average values [n], n at least 1, with a 95% interval."""
    n, mean = len(values), statistics.mean(values)
    if n < 2:
        return Interval(mean, math.inf, n)
    error = statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, float(t.ppf((1 + LEVEL) / 2, n - 1)) * error, n)


def difference(values: Sequence[float], others: Sequence[float]) -> Difference:
    """Compare values [n] with those of another recipe [n], of the same seeds in the same order."""
    pairs = [one - other for one, other in zip(values, others, strict=True)]
    spread = statistics.stdev(pairs) if len(pairs) > 1 else 0.0
    return Difference(interval(pairs), statistics.mean(pairs) / spread if spread else None)
