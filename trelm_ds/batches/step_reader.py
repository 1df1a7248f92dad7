"""The loader's steps, once all ranks agree that they can be taken."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from trelm_ds.batches.loader import StepBatches, StepLoader
from trelm_ds.batches.quarantine import note_quarantine
from trelm_ds.distributed import Ranks
from trelm_ds.errors import UserError
from trelm_ds.shards import Damage, Substitution


class ReadStep(NamedTuple):
    """A step's part of this rank, and what is counted of it over all ranks.

    Attributes:
        own: micro-batches of this rank.
        masked: tokens of the global batch to predict.
        asked: tokens of its facts to complete.
    """

    own: StepBatches
    masked: float
    asked: float


class StepReader:
    """Reads this rank's part of every step and writes down what is damaged."""

    def __init__(self, loader: StepLoader, substitution: Substitution, run: Path, ranks: Ranks) -> None:
        self.loader, self.substitution, self.run, self.ranks = loader, substitution, run, ranks
        self.damages: dict[int, Damage] = {}  # blocks met so far that cannot be read, of all ranks

    def read(self, step: int) -> ReadStep:
        """The next step; collective.

        Args:
            step: its number, for the list of damages.

        Raises:
            UserError: too much of the dataset is damaged, as some rank has found.
        """
        problem: UserError | None = None
        read = StepBatches.empty()
        try:
            read = next(self.loader)
        except UserError as error:
            problem = error
        new = [damage for damage in read.damages if damage.block not in self.damages]
        masked = sum(len(batch.labels) for batch in read.micro_batches)
        asked = sum(len(batch.facts.labels) for batch in read.micro_batches if batch.facts is not None)
        masked_everywhere, asked_everywhere, new_everywhere, problems = self.ranks.sum(
            masked, asked, len(new), int(problem is not None)
        )
        if problems:
            self.ranks.all_agree(lambda: _raise(problem))
        if new_everywhere:
            self._note(step, new)
        return ReadStep(read, masked_everywhere, asked_everywhere)

    def _note(self, step: int, new: list[Damage]) -> None:
        """Writes damaged blocks down; collective. Each rank and worker has met other ones, so the budget is checked."""
        self.damages |= {damage.block: damage for damages in self.ranks.gather(new) for damage in damages}
        damages = list(self.damages.values())
        if self.ranks.rank == 0:
            note_quarantine(self.run, step, damages)
        self.ranks.all_agree(lambda: self.substitution.check(damages))


def _raise(problem: UserError | None) -> None:
    if problem is not None:
        raise problem
