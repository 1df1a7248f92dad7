"""Whether the ranks that share a model have been given the same batch."""

from __future__ import annotations

from trelm_ds.batches import Step
from trelm_ds.distributed import Ranks
from trelm_ds.errors import CommonError
from trelm_ds.training.component import Component


class SameBatch(Component):
    """Compares the first batch of a start; from then on it follows from position and seed, which are the same.

    Other data would not fail by itself: the model's parts would be trained on different sentences.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks, self._checked = ranks, False

    def before_step(self, step: Step, steps_done: int) -> None:
        """Compare the batches of all ranks that share a model, once; collective.

        Raises:
            CommonError: some differ.
        """
        if self._checked or self._ranks.tensor is None:
            return
        found, degree = self._ranks.gather(step.digest()), self._ranks.tensor.degree
        for first in range(0, len(found), degree):
            for rank in range(first, first + degree):
                if found[rank] != found[first]:
                    raise CommonError(
                        f"step {steps_done + 1}: ranks {first} and {rank} share a model and have read different data; "
                        "is the dataset the same for all processes of a node?"
                    )
        self._checked = True
