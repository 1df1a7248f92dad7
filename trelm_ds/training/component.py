"""Optional parts of a run, which the trainer calls without knowing what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from trelm_ds.batches import Step
from trelm_ds.checkpoints import Captured, CheckpointInfo
from trelm_ds.model import Batch, ModelOutput


class Component:
    """An optional part of a run: knowledge, routing, the journal ...

    A run has a list of them, and the trainer calls each hook on all of them in order. A part overrides the hooks that
    it needs. `start`, `refresh`, `before_read`, `before_step`, `after_step` and `metrics` may be collective, since
    every rank calls them equally often. The others must not be: ranks differ in how many micro-batches attribution
    looks at, of those that share a model the first alone captures, and rank 0 alone asks for descriptions and
    parameters.
    """

    def start(self) -> None:
        """Fill the state of a run that begins."""

    def load(self, checkpoint: Path, info: CheckpointInfo) -> None:
        """Restore the state from a verified checkpoint, in the place of `start`.

        Raises:
            UserError: it does not fit this run.
        """

    def begin(self) -> None:
        """Open what is needed while training goes on: files, threads.

        Raises:
            UserError: it cannot be opened.
        """

    def refresh_due(self, steps_done: int) -> bool:
        """Whether `refresh` is to be called before the next step."""
        return False

    def refresh(self) -> None:
        """Recompute slowly changing state that is in checkpoints; this may take minutes."""

    def before_read(self, steps_done: int) -> None:
        """Begin a step, before it is read."""

    def before_step(self, step: Step, steps_done: int) -> None:
        """Prepare for the passes of a step."""

    def model_inputs(self) -> dict[str, Any]:
        """Give the model's further inputs, by keyword; called for every micro-batch."""
        return {}

    def after_micro_batch(self, batch: Batch, output: ModelOutput) -> None:
        """Look at what the model made of a micro-batch; nothing may change that a checkpoint holds."""

    def after_step(self, taken: bool) -> dict[str, int | Tensor]:
        """Learn from a step whose update was `taken`, or skipped; return counts for `metrics.summary`."""
        return {}

    def capture(self) -> Captured | None:
        """Give this rank's state for a checkpoint; None where the part has no files in it."""
        return None

    def manifest(self) -> dict[str, Any]:
        """Give values for fields of `CheckpointInfo`, such as `guard`; rank 0's are written."""
        return {}

    def metrics(self, seconds: float) -> dict[str, float]:
        """Measure what is logged, `seconds` of training after the last call."""
        return {}

    def describe(self) -> dict[str, str]:
        """Say in words what the part does in this run, by topic."""
        return {}

    def parameters(self) -> dict[str, Any]:
        """Give what the configuration does not say, for MLflow."""
        return {}

    def log(self, steps_done: int, metrics: dict[str, float]) -> None:
        """Take in a log point."""

    def end(self, steps_done: int, stop: int, failed: bool) -> None:
        """Close what `begin` has opened.

        Args:
            stop: what asked for the end, as in `stopping`; 0 for nothing.
            failed: whether an exception ends the run.
        """
