"""Locate each parameter's part on this rank within DeepSpeed's flat master tensors, for every ZeRO stage."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from trelm_ds.distributed import import_deepspeed, join_parts
from trelm_ds.engine.build import parameter_groups

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class Slot(NamedTuple):
    """Where this rank's part of a parameter is in the optimizer.

    Attributes:
        name: the parameter's name.
        start: index of the part's first element in the flattened parameter.
        master: the fp32 tensor that the optimizer updates and keeps state for; it may hold parts of other parameters.
        offset: index of the part's first element in the flattened master.
        size: number of elements.
    """

    name: str
    start: int
    master: Tensor
    offset: int
    size: int

    def of(self, tensor: Tensor) -> Tensor:
        """Return the view [size] of this part in a tensor of the master's size."""
        return tensor.data.view(-1)[self.offset : self.offset + self.size]


def base_optimizer(engine: DeepSpeedEngine) -> torch.optim.Optimizer:
    """Return our own optimizer, which DeepSpeed wraps except under ZeRO 0 in fp32."""
    optimizer: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return optimizer


def _data_rank(engine: DeepSpeedEngine) -> int:
    """Return this process's place among those over which ZeRO cuts a parameter."""
    return torch.distributed.get_rank() if engine.mpu is None else int(engine.mpu.get_data_parallel_rank())


def names_in_order(engine: DeepSpeedEngine) -> list[str]:
    """List the names of the trained parameters in the order of the optimizer that `build_engine` made."""
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    routed = any(group.get("lazy") for group in base_optimizer(engine).param_groups)
    groups = parameter_groups(engine.module, 0.0, routed)
    return [names[parameter] for group in groups for parameter in group["params"]]


def slots_of(engine: DeepSpeedEngine) -> Iterator[Slot]:
    """Yield the slots of this rank, those of one master next to each other."""
    optimizer, stage, rank = engine.optimizer, engine.zero_optimization_stage(), _data_rank(engine)
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    groups = [group["params"] for group in base_optimizer(engine).param_groups]
    if stage == 0:  # one master per parameter
        for name, master in zip(names_in_order(engine), itertools.chain(*groups), strict=True):
            yield Slot(name, 0, master, 0, master.numel())
    elif stage == 3:  # each parameter is cut into one piece per rank, the last pieces padded
        for index, parameters in enumerate(optimizer.fp16_groups):
            for parameter in parameters:
                _, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
                size = max(0, min(length, parameter.ds_numel - rank * length))
                yield Slot(names[parameter], rank * length, optimizer.fp32_partitioned_groups_flat[index], offset, size)
    else:  # stages 1 and 2: each group's parameters are laid end to end, and that is cut into one piece per rank
        for (master,), (parameters, offsets) in zip(groups, _laid_end_to_end(optimizer), strict=True):
            piece = rank * master.numel()
            for parameter, offset in zip(parameters, offsets, strict=True):
                first, last = max(offset, piece), min(offset + parameter.numel(), piece + master.numel())
                if first < last:
                    yield Slot(names[parameter], first - offset, master, first - piece, last - first)


def _laid_end_to_end(optimizer: Any) -> Iterator[tuple[list[Parameter], list[int]]]:
    """Yield, for each group of ZeRO 1 or 2, its parameters and the index of each one's first element in the group."""
    if hasattr(optimizer, "round_robin_bit16_groups"):
        yield from zip(optimizer.round_robin_bit16_groups, optimizer.round_robin_bit16_offsets, strict=True)
        return
    for parameters in optimizer.bf16_groups:  # BF16_Optimizer, under ZeRO 1 with gradient sums in fp32
        sizes = [parameter.numel() for parameter in parameters]
        yield parameters, [0, *itertools.accumulate(sizes[:-1])]


def clear_padding(engine: DeepSpeedEngine) -> None:
    """Zero the padding behind parameters that ZeRO 3 could not cut evenly.

    Nothing computes with it, but DeepSpeed leaves it uninitialized, perhaps NaN, and it is saved in checkpoints, whose
    bytes must be reproducible and finite.
    """
    if engine.zero_optimization_stage() != 3:
        return
    optimizer, rank = engine.optimizer, _data_rank(engine)
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
    """Return the whole word-embedding matrix, float32 [V, D].

    Collective under ZeRO 3 and tensor parallelism, under which no rank has it whole.
    """
    weight = engine.module.encoder.embeddings.word.weight
    if hasattr(weight, "ds_id"):
        deepspeed = import_deepspeed()
        with deepspeed.zero.GatheredParameters([weight]):
            own = weight.detach().float().clone()
    else:
        own = weight.detach().float()
    if (group := engine.module.tensor_group) is None:
        return own
    return join_parts(own, group, dimension=0)[: engine.module.config.vocab_size]
