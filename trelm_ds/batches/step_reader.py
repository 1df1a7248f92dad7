"""The loader's steps, once all ranks agree that they can be taken."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from trelm_ds.batches.loader import Step, StepLoader
from trelm_ds.batches.quarantine import note_quarantine
from trelm_ds.distributed import Ranks
from trelm_ds.errors import UserError
from trelm_ds.shards import Damage, Substitution


class StepReader:
    """Reads this rank's part of every step and writes down what is damaged.

    Args:
        loader: of this rank.
        substitution: whose budget for damaged samples holds for all ranks together.
        ranks: that agree on each step.
        objectives: names of all in `Step.targets`: a rank may lack one where others have it.

    Attributes:
        waited_s: seconds that `read` has waited for the loader; whoever logs them sets them back.
    """

    def __init__(
        self, loader: StepLoader, substitution: Substitution, run: Path, ranks: Ranks, objectives: Sequence[str]
    ) -> None:
        self.loader, self.substitution, self.run, self.ranks = loader, substitution, run, ranks
        self.objectives = objectives
        self.waited_s = 0.0
        self.damages: dict[int, Damage] = {}  # blocks met so far that cannot be read, of all ranks

    def read(self, number: int) -> Step:
        """Return the next step, with its targets counted over all ranks; collective.

        Args:
            number: of the step, for the list of damages.

        Raises:
            UserError: too much of the dataset is damaged, as some rank has found.
        """
        problem: UserError | None = None
        step, begun = Step.empty(), time.monotonic()
        try:
            step = next(self.loader)
        except UserError as error:
            problem = error
        self.waited_s += time.monotonic() - begun
        new = [damage for damage in step.damages if damage.block not in self.damages]
        own = [step.targets.get(name, 0) if self.ranks.first_of_model else 0 for name in self.objectives]
        problems, new_everywhere, *targets = self.ranks.sum(int(problem is not None), len(new), *own)
        if problems:
            self.ranks.all_agree(lambda: _raise(problem))
        if new_everywhere:
            self._note(number, new)
        return step._replace(targets=dict(zip(self.objectives, targets, strict=True)))

    def _note(self, step: int, new: list[Damage]) -> None:
        """Write damaged blocks down; collective. Each rank and worker has met other ones, so the budget is checked."""
        self.damages |= {damage.block: damage for damages in self.ranks.gather(new) for damage in damages}
        damages = list(self.damages.values())
        if self.ranks.rank == 0:
            note_quarantine(self.run, step, damages)
        self.ranks.all_agree(lambda: self.substitution.check(damages))


def _raise(problem: UserError | None) -> None:
    if problem is not None:
        raise problem
