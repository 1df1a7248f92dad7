"""Whether the ranks that share a model still agree on the parameters that each of them has whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trelm_ds import log
from trelm_ds.distributed import Ranks
from trelm_ds.model import partition_of
from trelm_ds.training.component import Component

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class SameWeights(Component):
    """Compares layer norms, positions and all else that tensor parallelism does not cut, at every log point.

    Nothing exchanges them: each rank computes the same updates. One that does not, because of a faulty GPU say, would
    train on with the others without a sign, for the norm of the gradient knows these parameters of one rank only.
    """

    def __init__(self, engine: DeepSpeedEngine, ranks: Ranks) -> None:
        self._engine, self._ranks, self._warned, self._steps_done = engine, ranks, False, 0

    def after_step(self, taken: bool) -> dict[str, int | Tensor]:
        """Count the steps of this start."""
        self._steps_done += 1
        return {}

    def metrics(self, seconds: float) -> dict[str, float]:
        """Compare, and warn once where ranks differ; collective."""
        if (tensor := self._ranks.tensor) is None or self._warned:
            return {}
        names, sums = checksums(self._engine.module, self._ranks)
        by_rank = [torch.empty_like(sums) for _ in range(tensor.degree)]
        dist.all_gather(by_rank, sums, group=tensor.group)
        differ = (torch.stack(by_rank) != by_rank[0]).any(0).nonzero().flatten().tolist()
        found = self._ranks.gather([names[index] for index in differ])
        for rank in range(0, len(found), tensor.degree):
            if names := found[rank]:
                self._warned = True
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                log.warning_rank0(
                    f"model.tensor_parallel: ranks {rank} to {rank + tensor.degree - 1} share a model, but differ in "
                    f"{names[0]}{more}, {self._steps_done} steps after the start; one of their GPUs may be faulty: "
                    "check them, and go on from a checkpoint of before"
                )
                break
        return {}


def checksums(model: nn.Module, ranks: Ranks) -> tuple[list[str], Tensor]:
    """Sum the bits of every parameter that is not cut, or of this rank's piece under ZeRO 3, in any order.

    Returns:
        names, and int64 [n] on the ranks' device.
    """
    names, sums = [], []
    for name, parameter in model.named_parameters():
        if partition_of(name) is None:
            own, piece = parameter.detach(), getattr(parameter, "ds_tensor", None)
            if piece is not None:  # the last pieces are padded with whatever was in memory
                length: int = parameter.ds_numel  # type: ignore[attr-defined]
                own = piece.detach().view(-1)[: max(0, min(piece.numel(), length - ranks.data.rank * piece.numel()))]
            names.append(name)
            bits = own.view({2: torch.int16, 4: torch.int32}[own.element_size()])
            sums.append(bits.sum(dtype=torch.int64).to(ranks.device))  # where ZeRO has moved pieces to the host, too
    return names, torch.stack(sums)
