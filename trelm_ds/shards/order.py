"""The order of training samples: sample id = f(seed, epoch, position), for any number of ranks and workers."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from trelm_ds.keyed_random import Stream, keyed_permutation


class SampleOrder:
    """An exact permutation of all samples for every epoch, nearly sequential on disk.

    An epoch permutes the blocks, divides them into windows of `window_blocks`, and shuffles the samples of each window.
    So a reader holds one window at a time, and any position can be computed without those before it.

    Args:
        block_sizes: int [K], samples of each block; sample ids number the samples in storage order.
        seed: seed of the run's order.
        window_blocks: number of blocks shuffled together.
        batch_multiple: 1 to read every sample in every epoch; G to end each epoch after its last whole batch of G, so
            that no batch spans two epochs. The samples dropped differ from epoch to epoch.
    """

    def __init__(self, block_sizes: np.ndarray, seed: int, window_blocks: int, batch_multiple: int = 1) -> None:
        self.n_samples = int(block_sizes.sum())
        self.epoch_samples = self.n_samples - self.n_samples % batch_multiple
        assert self.epoch_samples > 0
        self._arguments = block_sizes, seed, window_blocks, batch_multiple
        self._sizes, self._seed, self._window = np.asarray(block_sizes, dtype=np.int64), seed, window_blocks
        self._first = np.concatenate([[0], np.cumsum(self._sizes)])
        self._window_samples = lru_cache(maxsize=4)(self._compute_window)
        self._epoch = lru_cache(maxsize=2)(self._compute_epoch)

    def __reduce__(self) -> tuple[Any, ...]:
        return SampleOrder, self._arguments

    def state(self, position: int) -> dict[str, int]:
        """Describe a position of the run by four numbers, which suffice to find it again."""
        epoch, within = divmod(position, self.epoch_samples)
        return {"seed": self._seed, "window_blocks": self._window, "epoch": epoch, "position": within}

    def samples(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (epochs, sample ids), int64 [count] each, at the run's positions [start, start + count).

        Positions are numbered across epochs: position p is in epoch p // epoch_samples.
        """
        positions = np.arange(start, start + count)
        epochs, within = np.divmod(positions, self.epoch_samples)
        ids = np.empty(count, dtype=np.int64)
        for epoch in np.unique(epochs):
            _, window_starts = self._epoch(int(epoch))
            windows = np.searchsorted(window_starts, within, side="right") - 1
            for window in np.unique(windows[epochs == epoch]):
                chosen = (epochs == epoch) & (windows == window)
                ids[chosen] = self._window_samples(int(epoch), int(window))[within[chosen] - window_starts[window]]
        return epochs, ids

    def _compute_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Compute the epoch's order of blocks [K], and the position at which each window begins."""
        blocks = keyed_permutation(len(self._sizes), self._seed, epoch, Stream.BLOCK_ORDER)
        starts = np.concatenate([[0], np.cumsum(self._sizes[blocks])])[:-1]
        return blocks, starts[:: self._window]

    def _compute_window(self, epoch: int, window: int) -> np.ndarray:
        """Compute the sample ids of a window in shuffled order."""
        blocks = self._epoch(epoch)[0][window * self._window : (window + 1) * self._window]
        ids = np.concatenate([np.arange(self._first[block], self._first[block + 1]) for block in blocks])
        return ids[keyed_permutation(len(ids), self._seed, epoch, Stream.ORDER_IN_WINDOW, window)]
