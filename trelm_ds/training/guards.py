"""Steps that are not taken: a loss or gradient that is not finite on any rank, a loss far above the last ones."""

from __future__ import annotations

import contextlib
import json
import math
import statistics
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trelm_ds import log
from trelm_ds.checkpoints import CheckpointInfo
from trelm_ds.config import GuardsConfig
from trelm_ds.distributed import TensorGroup
from trelm_ds.errors import CommonError
from trelm_ds.files import append_line, read_json_lines, write_atomically
from trelm_ds.training.component import Component

SKIPPED = "skipped_steps.jsonl"  # in the run folder
_RECENT = 1000  # steps over which skipped ones are counted
LOSS, GRADIENT, SPIKE = "loss not finite", "gradient not finite", "loss spike"


class Guard(Component):
    """Judges steps by numbers that are the same on all ranks, so that all of them come to the same decision.

    Args:
        settings: window and budget.
        run: where skipped steps are written down.
        writes: whether this rank does.
    """

    def __init__(self, settings: GuardsConfig, run: Path, writes: bool) -> None:
        self._settings, self._path, self._writes = settings, run / SKIPPED, writes
        self._losses: deque[float] = deque(maxlen=settings.spike_window)
        self._skipped: deque[int] = deque()  # steps of the last 1,000
        self.count = 0  # of the whole run

    def judge(self, loss: float) -> str | None:
        """Say why a step with this loss must not be taken; None where nothing speaks against it.

        Args:
            loss: mean over the whole global batch.
        """
        if not math.isfinite(loss):
            return LOSS
        if self._settings.spike_sigma and len(self._losses) == self._settings.spike_window:
            mean = statistics.fmean(self._losses)
            if loss > mean + self._settings.spike_sigma * statistics.pstdev(self._losses, mean):
                return SPIKE
        return None

    def took(self, loss: float) -> None:
        """Record the loss of a step that was taken."""
        self._losses.append(loss)

    def skipped(self, step: int, reason: str, loss: float, samples: Iterable[int]) -> None:
        """Record a step that was not taken.

        Args:
            step: its number, from 1.
            reason: why.
            loss: its mean loss.
            samples: ids of its global batch.

        Raises:
            CommonError: more have been skipped than the budget allows.
        """
        self.count += 1
        self._skipped.append(step)
        while self._skipped[0] <= step - _RECENT:
            self._skipped.popleft()
        if self._writes:
            entry = {"step": step, "reason": reason, "loss": repr(loss), "samples": list(samples)}
            try:
                append_line(self._path, json.dumps(entry))
            except OSError as error:  # a full disk is no reason to stop training
                log.warning_once(f"{self._path}: cannot be written: {error.strerror}")
        if len(self._skipped) > (budget := self._settings.max_skipped):
            raise CommonError(
                f"guards.max_skipped: {len(self._skipped)} of the last {min(step, _RECENT):,} steps were skipped, "
                f"{budget} are allowed; the last is step {step} ({reason}), its samples are in {self._path}; look "
                "at them and raise the budget, or start another run with a lower optimizer.lr"
            )

    def manifest(self) -> dict[str, Any]:
        """Give the losses and skipped steps that later judgements depend on."""
        return {"guard": {"losses": list(self._losses), "skipped": list(self._skipped), "count": self.count}}

    def metrics(self, seconds: float) -> dict[str, float]:
        """Count the skipped steps of the whole run."""
        return {"skipped_steps": float(self.count)}

    def load(self, checkpoint: Path, info: CheckpointInfo) -> None:
        """Restore from the manifest; drop records of steps that will run again."""
        state, step = info.guard, info.step
        if self._writes and self._path.is_file():
            kept = [entry for entry in read_json_lines(self._path) if entry.get("step", math.inf) <= step]
            with contextlib.suppress(OSError):
                write_atomically(self._path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self._losses.extend(state.get("losses", []))
        self._skipped.extend(state.get("skipped", []))
        self.count = state.get("count", 0)


def gradient_norm(optimizer: torch.optim.Optimizer, tensor: TensorGroup | None = None) -> float:
    """Compute the norm of all gradients; they must be whole, as under ZeRO 0, where DeepSpeed looks at none in fp32.

    Args:
        tensor: the ranks that have parts of them, those of parameters marked so; collective.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if tensor is None:
        return float(torch.nn.utils.get_total_norm([p.grad for p in parameters]))
    own = [p.grad for p in parameters if getattr(p, "tensor_model_parallel", False) or tensor.rank == 0]
    squared = torch.nn.utils.get_total_norm(own).double().square()
    dist.all_reduce(squared, group=tensor.group)
    return float(squared.sqrt())
