"""Losses on text that is not trained on, while a run goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from trelm_ds.batches import Step, StepDataset
from trelm_ds.config import Config
from trelm_ds.distributed import Ranks
from trelm_ds.errors import UserError
from trelm_ds.training.component import Component
from trelm_ds.training.knowledge import Knowledge
from trelm_ds.training.metrics import Window, summary

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_PART = 32  # sequences of a part, the smallest that a rank takes


class _Turn(NamedTuple):
    """What a rank passes through the model while all others pass theirs.

    Attributes:
        part: some of the sequences.
        counts: whether they are this rank's to count.
        passes: forward passes, as many as on every other rank: under ZeRO-3 each is collective.
    """

    part: Step
    counts: bool
    passes: int


class HeldOutLosses(Component):
    """Scores the model on the same sequences, masks and facts every time, without dropout; training does not notice.

    They are dealt to the ranks in parts that do not depend on how many there are. Built once, at the start; collective.

    Args:
        held_out: whole on every rank.
        knowledge: what is injected, with bank and vectors as they are then; None for a run without.
        weights: of the objectives in the loss, "mlm" first.

    Raises:
        UserError: some rank cannot read the text, or none of it is masked.
    """

    def __init__(
        self,
        config: Config,
        held_out: StepDataset,
        engine: DeepSpeedEngine,
        knowledge: Knowledge | None,
        weights: dict[str, float],
        ranks: Ranks,
    ) -> None:
        self._every, self._last = config.trainer.eval_every, config.trainer.max_steps
        self._engine, self._knowledge, self._weights, self._ranks = engine, knowledge, weights, ranks.data
        self.n_sequences = min(config.trainer.eval_sequences, held_out.order.n_samples)
        self._steps_done = 0
        own = ranks.all_agree(lambda: self._own_parts(held_out))
        if not self._ranks.sum(sum(part.targets.get("mlm", 0) for part, counts in own if counts))[0]:
            raise UserError(
                f"trainer.eval_sequences: no word of the first {self.n_sequences} held-out ones is masked; use more"
            )
        self._turns = [_Turn(part, counts, self._ranks.max(len(part.micro_batches))) for part, counts in own]

    def _own_parts(self, held_out: StepDataset) -> list[tuple[Step, bool]]:
        """Build every n-th part, n ranks, and tell whether to count it: a rank without one repeats another's."""
        total, ranks = -(-self.n_sequences // _PART), self._ranks
        built = []
        for number in range(ranks.rank, -(-total // ranks.world_size) * ranks.world_size, ranks.world_size):
            part = number % total
            first = part * _PART
            count = min(_PART, self.n_sequences - first)
            built.append((held_out.build(first, count, part), number < total))
        return built

    def before_step(self, step: Step, steps_done: int) -> None:
        """Count the steps."""
        self._steps_done = steps_done + 1

    def metrics(self, seconds: float) -> dict[str, float]:
        """Evaluate where it is due; collective."""
        done = self._steps_done
        return self.evaluate() if done and (done == self._last or done % self._every == 0) else {}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Compute losses and accuracies, as in training but named `eval_...`; collective."""
        window = Window()
        self._engine.eval()
        for part, counts, passes in self._turns:
            inputs = {} if self._knowledge is None else {"tables": self._knowledge.tables_of(part)}
            for index in range(passes):
                mine = index < len(part.micro_batches)
                batch = part.micro_batches[index if mine else 0].to(self._ranks.device)
                output = self._engine(batch, **inputs)
                if counts and mine:
                    window.add(batch, output)
        self._engine.train()
        measured = summary(window.totals(self._ranks), self._weights, seconds=1.0)
        return {f"eval_{name}": value for name, value in measured.items() if name.endswith(("loss", "accuracy"))}

    def describe(self) -> dict[str, str]:
        """Say what is evaluated."""
        return {"held-out text": f"{self.n_sequences:,} sequences, every {self._every} steps and at the end"}
