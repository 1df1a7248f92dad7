"""Intervals over seeds against numbers from a textbook's table of Student's distribution."""

from __future__ import annotations

import math
import sys

import pytest

from tests.forked import ROOT

sys.path.insert(0, str(ROOT / "tools" / "bench"))

from paired import difference, interval


def test_an_interval_is_students() -> None:
    found = interval([1.0, 2.0, 3.0, 4.0])
    assert found.mean == 2.5
    assert found.half == pytest.approx(3.182 * math.sqrt(5 / 3) / 2, rel=1e-3)  # t(0.975, 3 degrees of freedom)
    assert str(found) == "2.5 ± 2.1"


def test_one_value_has_no_interval() -> None:
    assert interval([7.0]).half == math.inf
    assert str(interval([7.0])) == "7.0"
    assert not difference([9.0], [1.0]).resolved
    assert difference([9.0], [1.0]).to_json() == {
        "mean": 8.0, "half": None, "effect": None, "n": 1, "resolved": False
    }  # fmt: skip


def test_pairs_resolve_what_means_do_not() -> None:
    base = [10.0, 30.0, 50.0, 70.0]
    found = difference([value + gain for value, gain in zip(base, (1.9, 2.0, 2.1, 2.0), strict=True)], base)
    assert found.resolved
    assert str(found) == "+2.0 ± 0.1"
    assert found.effect == pytest.approx(2 / 0.0816, rel=0.01)
    crossed = difference([40.0, 20.0, 60.0, 50.0], base)
    assert not crossed.resolved
    assert str(crossed).startswith("not resolved at n = 4 (+2.5 ± ")


def test_equal_differences_are_certain_and_0_is_none() -> None:
    assert difference([3.0, 4.0], [1.0, 2.0]).resolved
    assert difference([3.0, 4.0], [1.0, 2.0]).effect is None
    assert not difference([1.0, 2.0], [1.0, 2.0]).resolved


def test_seeds_must_match() -> None:
    with pytest.raises(ValueError, match="zip"):
        difference([1.0], [1.0, 2.0])
