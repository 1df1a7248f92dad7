"""The processes that fine-tune together: one alone, or the ranks of a launcher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import nn

from trelm_ds.distributed import Ranks
from trelm_ds.engine import build_data_parallel

T = TypeVar("T")


class Workers(Protocol):
    """What fine-tuning needs of its processes; every method but `device` and `rank` is collective."""

    rank: int
    world_size: int
    device: torch.device

    def gather(self, value: T) -> list[T]:
        """Collect a value from every process."""

    def sum(self, value: float) -> float:
        """Sum a number over all processes."""

    def all_agree(self, call: Callable[[], T]) -> T:
        """Run `call` everywhere; where it fails on one, fail on all."""

    def stepper(self, model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> Stepper:
        """Return what takes optimizer steps."""


class Stepper(Protocol):
    """Takes one optimizer step by a loss, [], of this process."""

    def __call__(self, loss: torch.Tensor) -> None: ...


class Alone:
    """One process without a process group: it starts at once and needs no DeepSpeed."""

    rank, world_size = 0, 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def gather(self, value: T) -> list[T]:
        return [value]

    def sum(self, value: float) -> float:
        return value

    def all_agree(self, call: Callable[[], T]) -> T:
        return call()

    def stepper(self, model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> Stepper:
        def step(loss: torch.Tensor) -> None:
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step


class Together:
    """Ranks that each take a part of every batch; DeepSpeed averages their gradients."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self.rank, self.world_size, self.device = ranks.rank, ranks.world_size, ranks.device

    def gather(self, value: T) -> list[T]:
        return self._ranks.gather(value)

    def sum(self, value: float) -> float:
        return self._ranks.sum(value)[0]

    def all_agree(self, call: Callable[[], T]) -> T:
        return self._ranks.all_agree(call)

    def stepper(self, model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> Stepper:
        engine = build_data_parallel(model, optimizer, max_grad_norm)

        def step(loss: torch.Tensor) -> None:
            engine.backward(loss)
            engine.step()

        return step
