"""Substitution of samples in damaged blocks by other samples, the same ones on every attempt."""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from trelm_ds.errors import UserError
from trelm_ds.keyed_random import Stream, keyed_bits
from trelm_ds.shards.reader import Damage, DamagedBlockError, ShardReader
from trelm_ds.shards.storage import LocalFolder

_TRIES = 256


class Substitution:
    """Substitutes readable samples for damaged ones, within a budget.

    Args:
        reader: reader of the dataset.
        seed: seed of the run's order; substitutes are keyed by (seed, epoch, sample id, try).
        max_corrupted: share of the dataset's samples that may be in damaged blocks.

    Raises:
        UserError: missing shards of a local folder alone exceed the budget.
    """

    def __init__(self, reader: ShardReader, seed: int, max_corrupted: float) -> None:
        self._reader, self._seed, self._share = reader, seed, max_corrupted
        self.budget = max_corrupted * reader.manifest.n_sequences
        missing = []
        if isinstance(reader.storage, LocalFolder):
            folder = reader.storage.folder
            missing = [shard for shard in reader.manifest.shards if not (folder / shard.name).is_file()]
        lost = sum(shard.sequences for shard in missing)
        if lost > self.budget:
            names = ", ".join(shard.name for shard in missing[:3]) + (" ..." if len(missing) > 3 else "")
            self._refuse(f"{reader.storage.place}: {names} missing, {self._of_all(lost)}")

    def readable(self, epochs: np.ndarray, sample_ids: np.ndarray) -> np.ndarray:
        """Replace sample ids in damaged blocks; a substitute is never longer than the sample it replaces.

        Args:
            epochs, sample_ids: int64 [n].

        Raises:
            UserError: more samples are in damaged blocks than the budget allows; names a shard.
        """
        blocks = self._reader.blocks_of(sample_ids)
        damaged = [block for block in np.unique(blocks).tolist() if not self._can_load(block)]
        if not damaged:
            return sample_ids
        found = sample_ids.copy()
        for row in np.flatnonzero(np.isin(blocks, damaged)).tolist():
            found[row] = self._substitute(int(epochs[row]), int(sample_ids[row]))
        return found

    def check(self, damages: list[Damage]) -> None:
        """Raise the error of `readable` if the blocks, each counted once, hold more samples than the budget allows."""
        lost = sum(damage.sequences for damage in {damage.block: damage for damage in damages}.values())
        if lost > self.budget:
            place, first = self._reader.storage.place, damages[0]
            where = f"{place}/{first.shard}: damaged at byte {first.offset} ({first.reason})"
            self._refuse(f"{where}; damaged blocks so far hold {self._of_all(lost)}")

    def _of_all(self, lost: int) -> str:
        """Format a number of samples as a share of the dataset."""
        total = self._reader.manifest.n_sequences
        return f"{lost} of {total} samples ({lost / total:.2%})"

    def _refuse(self, what: str) -> NoReturn:
        raise UserError(
            f"{what}, more than loader.max_corrupted {self._share:g} allows: raise it to go on with this run, or start "
            f"a new one after `trelm verify --repair {self._reader.storage.place}`"
        )

    @property
    def damages(self) -> list[Damage]:
        """The damaged blocks encountered so far."""
        return [error.damage for error in self._reader.damaged.values()]

    def _can_load(self, block: int) -> bool:
        try:
            self._reader.load(block)
        except DamagedBlockError:
            self.check(self.damages)
            return False
        return True

    def _substitute(self, epoch: int, sample: int) -> int:
        """Draw a readable sample that is no longer than this one."""
        lengths = self._reader.lengths
        draws = keyed_bits(self._seed, Stream.SUBSTITUTE, epoch, sample, np.arange(_TRIES))
        candidates = (draws % np.uint64(len(lengths))).astype(np.int64)
        fitting = candidates[lengths[candidates] <= lengths[sample]]
        # For one of the shortest samples few draws fit, so draw again, from those that are as short.
        if (chosen := self._first_readable(fitting)) is None:
            short = np.flatnonzero(lengths <= lengths[sample])
            chosen = self._first_readable(short[(draws % np.uint64(len(short))).astype(np.int64)])
        if chosen is None:
            place = self._reader.storage.place
            raise UserError(
                f"{place}: nothing to read in place of damaged samples; run `trelm verify --repair {place}`"
            )
        return chosen

    def _first_readable(self, candidates: np.ndarray) -> int | None:
        blocks = self._reader.blocks_of(candidates)
        return next((int(c) for c, b in zip(candidates, blocks.tolist(), strict=True) if self._can_load(b)), None)
