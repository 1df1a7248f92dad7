"""Where DeepSpeed keeps which part of which parameter on this rank."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from trelm_ds.distributed import import_deepspeed
from trelm_ds.engine.build import parameter_groups

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class Slot(NamedTuple):
    """Where the optimizer has this rank's part of a parameter.

    Attributes:
        name: of the parameter.
        start: first element of the part, of the flattened parameter.
        master: what the optimizer updates and has its state for: fp32, perhaps holding more than this parameter.
        offset: first element of the part, of the flattened master.
        size: elements of the part.
    """

    name: str
    start: int
    master: Tensor
    offset: int
    size: int

    def of(self, tensor: Tensor) -> Tensor:
        """The part [size], of a tensor of the master's size."""
        return tensor.data.view(-1)[self.offset : self.offset + self.size]


def base_optimizer(engine: DeepSpeedEngine) -> torch.optim.Optimizer:
    """Ours, which DeepSpeed wraps but for ZeRO 0 in fp32."""
    optimizer: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return optimizer


def names_in_order(engine: DeepSpeedEngine) -> list[str]:
    """The trained parameters in the order of the optimizer that `build_engine` has made."""
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    groups = parameter_groups(
        engine.module, 0.0, any(group.get("lazy") for group in base_optimizer(engine).param_groups)
    )
    return [names[parameter] for group in groups for parameter in group["params"]]


def slots_of(engine: DeepSpeedEngine) -> Iterator[Slot]:
    """All of this rank, those of one master together."""
    optimizer, stage, rank = engine.optimizer, engine.zero_optimization_stage(), torch.distributed.get_rank()
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    groups = [group["params"] for group in base_optimizer(engine).param_groups]
    if stage == 0:  # a master for each parameter
        for name, master in zip(names_in_order(engine), itertools.chain(*groups), strict=True):
            yield Slot(name, 0, master, 0, master.numel())
    elif stage == 3:  # a piece of each parameter, the last ones padded
        for index, parameters in enumerate(optimizer.fp16_groups):
            for parameter in parameters:
                _, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
                size = max(0, min(length, parameter.ds_numel - rank * length))
                yield Slot(names[parameter], rank * length, optimizer.fp32_partitioned_groups_flat[index], offset, size)
    else:  # a piece of each group's parameters in a row
        orders = zip(groups, optimizer.round_robin_bit16_groups, optimizer.round_robin_bit16_offsets, strict=True)
        for (master,), parameters, offsets in orders:
            piece = rank * master.numel()
            for parameter, offset in zip(parameters, offsets, strict=True):
                first, last = max(offset, piece), min(offset + parameter.numel(), piece + master.numel())
                if first < last:
                    yield Slot(names[parameter], first - offset, master, first - piece, last - first)


def clear_padding(engine: DeepSpeedEngine) -> None:
    """Sets to 0 what lies behind the end of parameters that ZeRO 3 has not cut evenly.

    Nothing reads it, and DeepSpeed leaves there what was in memory, NaN perhaps. But it is in the files of checkpoints.
    """
    if engine.zero_optimization_stage() != 3:
        return
    optimizer, rank = engine.optimizer, torch.distributed.get_rank()
    for parameter in engine.module.parameters():
        piece = parameter.ds_tensor
        piece.data.view(-1)[max(0, min(piece.ds_numel, parameter.ds_numel - rank * piece.ds_numel)) :].zero_()
    for index, parameters in enumerate(optimizer.fp16_groups):
        master = optimizer.fp32_partitioned_groups_flat[index]
        state = base_optimizer(engine).state.get(master, {})
        whole = [master, *(tensor for key, tensor in state.items() if key != "step")]
        for parameter in parameters:
            _, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
            size = max(0, min(length, parameter.ds_numel - rank * length))
            for tensor in whole:
                tensor.data.view(-1)[offset + size : offset + length].zero_()


def word_embedding(engine: DeepSpeedEngine) -> Tensor:
    """Return the whole word-embedding matrix, float32 [V, D]; collective under ZeRO-3, which has it in shards."""
    weight = engine.module.encoder.embeddings.word.weight
    if not hasattr(weight, "ds_id"):
        return weight.detach().float()
    deepspeed = import_deepspeed()
    with deepspeed.zero.GatheredParameters([weight]):
        return weight.detach().float().clone()
