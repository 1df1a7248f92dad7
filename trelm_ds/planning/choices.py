"""What a plan chooses between, and how a choice is written as settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from trelm_ds.config import Config
from trelm_ds.files import read_json
from trelm_ds.settings import find_ds_config

STAGES, DEGREES = (0, 1, 2, 3), (1, 2, 4, 8)
_LEAST_TOKENS, _MOST_TOKENS = 2048, 131072  # of a micro-batch


class Choice(NamedTuple):
    """One way to run the same training.

    Attributes:
        stage: of ZeRO.
        offload: whether the optimizer is the CPU's.
        tensor: ranks that share a model.
        micro_batch_tokens: as in the settings.
        checkpointing: whether layers are recomputed in the backward pass.
    """

    stage: int
    offload: bool
    tensor: int
    micro_batch_tokens: int
    checkpointing: bool

    @property
    def name(self) -> str:
        """A name for folders and tables."""
        parts = [f"zero{self.stage}{'-offload' if self.offload else ''}", f"tp{self.tensor}" if self.tensor > 1 else ""]
        parts += [f"{self.micro_batch_tokens}", "recomputed" if self.checkpointing else ""]
        return "-".join(part for part in parts if part)

    def settings(self, ds_config: str) -> dict[str, dict[str, Any]]:
        """Return what a run's settings say of it, by section."""
        model = {"tensor_parallel": self.tensor, "activation_checkpointing": self.checkpointing}
        return {"model": model, "trainer": {"micro_batch_tokens": self.micro_batch_tokens, "ds_config": ds_config}}

    def applied(self, config: Config) -> Config:
        """Return a run's configuration with this choice, but for its DeepSpeed file."""
        model = replace(config.model, tensor_parallel=self.tensor, activation_checkpointing=self.checkpointing)
        return replace(config, model=model, trainer=replace(config.trainer, micro_batch_tokens=self.micro_batch_tokens))

    def ds_config(self) -> dict[str, Any]:
        """Return the DeepSpeed file: the shipped one of its stage."""
        content: dict[str, Any] = read_json(find_ds_config(f"ds_configs/zero{self.stage}.json"))
        if self.offload:
            content["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        return content


def sizes_of_micro_batches(configured: int, least: int, most: float) -> list[int]:
    """List sizes of micro-batches in tokens: the one configured, and powers of two around it.

    Args:
        least: holds the longest sequence.
        most: tokens of a rank's step; larger ones would not fill.
    """
    power, found = _LEAST_TOKENS, {max(configured, least)}
    while power <= min(_MOST_TOKENS, 2 * most):
        if power >= least:
            found.add(power)
        power *= 2
    return sorted(found)


def degrees(configured: int, per_node: int) -> list[int]:
    """List degrees of tensor parallelism: the one configured, and those that divide the GPUs of a node."""
    return sorted({configured} | {degree for degree in DEGREES if per_node % degree == 0})


def choices(sizes: list[int], shares: list[int]) -> Iterator[Choice]:
    """List everything that is planned, for micro-batches of these sizes and degrees of tensor parallelism."""
    for tensor in shares:
        for checkpointing in (False, True):
            for tokens in sizes:
                for stage in STAGES:
                    yield Choice(stage, False, tensor, tokens, checkpointing)
                    if stage:
                        yield Choice(stage, True, tensor, tokens, checkpointing)
