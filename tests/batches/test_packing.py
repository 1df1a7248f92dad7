"""Packing: every sequence once, within the budget, balanced, the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from trelm_ds.batches.packing import pack


def random_lengths(seed: int, count: int, longest: int = 512) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return np.clip(draw.lognormal(4, 1, count), 3, longest).astype(np.int32)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("budget", [512, 700, 4096, 10**9])
@pytest.mark.parametrize("seed", range(5))
def test_every_sequence_once_and_nothing_over_the_budget(world_size: int, budget: int, seed: int) -> None:
    lengths = random_lengths(seed, 8 * (seed + 1) ** 2)
    packed = pack(lengths, world_size, budget)
    assert len(packed) == world_size
    assert len({len(batches) for batches in packed}) == 1
    rows = [batch for batches in packed for batch in batches]
    assert sorted(np.concatenate(rows)) == list(range(len(lengths)))
    assert all(len(batch) and lengths[batch].sum() <= budget for batch in rows)
    assert all((np.diff(batch) > 0).all() for batch in rows)


def test_no_more_micro_batches_than_needed() -> None:
    assert [len(batches) for batches in pack(np.full(64, 100), 2, 1600)] == [2, 2]
    assert [len(batches) for batches in pack(np.full(64, 100), 2, 1599)] == [3, 3]
    assert [len(batches) for batches in pack(np.full(64, 100), 2, 3200)] == [1, 1]
    assert [len(batches) for batches in pack(np.full(8, 100), 8, 100)] == [1] * 8


@pytest.mark.parametrize("world_size", [2, 8])
def test_ranks_and_micro_batches_have_about_the_same_tokens(world_size: int) -> None:
    lengths = random_lengths(3, 1024)
    packed = pack(lengths, world_size, 4096)
    tokens = np.array([[lengths[batch].sum() for batch in batches] for batches in packed])
    assert tokens.shape[1] > 1
    assert np.ptp(tokens.sum(axis=1)) <= 512  # one sequence at most
    assert (np.ptp(tokens, axis=0) <= 512).all()


def test_the_packing_is_frozen() -> None:
    """A change here changes what a resumed run computes, in the last bits."""
    packed = pack(np.array([5, 9, 2, 7, 7, 1, 3, 4]), 2, 12)
    assert [[batch.tolist() for batch in batches] for batches in packed] == [[[1, 5], [0, 7]], [[3, 6], [2, 4]]]
