"""The order of training: a permutation of every epoch, found from any position."""

from __future__ import annotations

import numpy as np
import pytest

from trelm_ds.keyed_random import keyed_bits, keyed_permutation, keyed_uniform
from trelm_ds.shards import SampleOrder

SIZES = np.array([7, 7, 7, 7, 7, 7, 7, 7, 3])
N = int(SIZES.sum())


@pytest.mark.parametrize("window_blocks", [1, 2, 4, 100])
def test_every_sample_once_an_epoch(window_blocks: int) -> None:
    order = SampleOrder(SIZES, seed=3, window_blocks=window_blocks)
    seen = []
    for epoch in range(3):
        epochs, ids = order.samples(epoch * N, N)
        assert set(epochs) == {epoch}
        assert sorted(ids) == list(range(N))
        seen.append(tuple(ids))
    assert len(set(seen)) == 3


@pytest.mark.parametrize("step", [1, 5, 13, N, N + 1])
def test_the_order_does_not_depend_on_how_it_is_asked(step: int) -> None:
    total = 3 * N
    whole = SampleOrder(SIZES, 1, 3).samples(0, total)
    order = SampleOrder(SIZES, 1, 3)
    parts = [order.samples(start, min(step, total - start)) for start in range(0, total, step)]
    for index in (0, 1):
        np.testing.assert_array_equal(np.concatenate([part[index] for part in parts]), whole[index])
    _, tail = SampleOrder(SIZES, 1, 3).samples(total - 10, 10)  # straight to the end
    np.testing.assert_array_equal(tail, whole[1][-10:])


def test_windows_stay_together_on_disk() -> None:
    order = SampleOrder(np.full(40, 10), seed=0, window_blocks=4)
    _, ids = order.samples(0, 400)
    for window in ids.reshape(10, 40):
        assert len(set(window // 10)) == 4


def test_seeds_differ() -> None:
    first, second = (SampleOrder(SIZES, seed, 4).samples(0, N)[1] for seed in (0, 1))
    assert (first != second).sum() > N // 2


def test_the_order_is_frozen() -> None:
    """A change here makes every resumed run read other data: it needs a new schema version."""
    assert SampleOrder(SIZES, seed=0, window_blocks=2).samples(0, 8)[1].tolist() == [11, 15, 17, 12, 19, 20, 7, 16]


def test_keyed_numbers_are_uniform_and_independent() -> None:
    draws = keyed_uniform(0, np.arange(200_000))
    assert 0 <= draws.min() < draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.005
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(draws, keyed_uniform(1, np.arange(200_000)))[0, 1]) < 0.01
    assert keyed_bits(1, 2) != keyed_bits(2, 1)
    assert keyed_bits(1, 2) == keyed_bits(2, after=keyed_bits(1))
    assert sorted(keyed_permutation(1000, 5)) == list(range(1000))
