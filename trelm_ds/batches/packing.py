"""Which sequences of a step stand together in a micro-batch: a pure function of their lengths."""

from __future__ import annotations

import heapq

import numpy as np


def pack(lengths: np.ndarray, world_size: int, budget: int) -> list[list[np.ndarray]]:
    """Deal a step's sequences to ranks and micro-batches of at most `budget` tokens, about equal in tokens.

    Every rank gets the same number A of micro-batches, at most an eighth more than the fewest for which longest-first
    greedy dealing fits the budget. Micro-batches that run at the same time (the a-th of every rank) are those closest
    in tokens, and ranks take turns at getting the larger one. None is empty.

    Args:
        lengths: int [G], tokens of each sequence of the global batch, each at most `budget`; G is a multiple of
            `world_size`.
        world_size: W ranks.
        budget: tokens per micro-batch at most.

    Returns:
        for each of the W ranks A index arrays int64 [B] into `lengths`, ascending; together every index once.
    """
    assert len(lengths) % world_size == 0
    assert lengths.max() <= budget
    longest_first = np.argsort(-lengths.astype(np.int64), kind="stable")
    sizes = lengths[longest_first].tolist()
    accumulation = -(-sum(sizes) // (world_size * budget))
    # One sequence per micro-batch fits, so this ends at G / W at the latest. Steps grow with A: lengths that pair badly
    # would otherwise take thousands of tries.
    while (owners := _deal(sizes, world_size * accumulation, budget)) is None:
        accumulation = min(accumulation + 1 + accumulation // 8, len(lengths) // world_size)
    n_bins = world_size * accumulation
    owner = np.empty(len(lengths), dtype=np.int64)
    owner[longest_first] = owners
    tokens = np.bincount(owner, weights=lengths, minlength=n_bins)
    largest_first = np.argsort(-tokens, kind="stable").reshape(accumulation, world_size)
    largest_first[1::2] = largest_first[1::2, ::-1].copy()
    members = np.split(np.argsort(owner, kind="stable"), np.cumsum(np.bincount(owner, minlength=n_bins))[:-1])
    return [[members[number] for number in largest_first[:, rank]] for rank in range(world_size)]


def _deal(sizes: list[int], n_bins: int, budget: int) -> list[int] | None:
    """Put each size into the bin that is emptiest so far; return each one's bin, or None where one overflows."""
    bins = [(0, number) for number in range(n_bins)]
    owners = []
    for size in sizes:
        load, number = bins[0]
        if load + size > budget:
            return None
        heapq.heapreplace(bins, (load + size, number))
        owners.append(number)
    return owners
