"""Loading a checkpoint on any number of ranks and under any ZeRO stage, whatever it was saved by.

Nothing is converted on disk. The files of all ranks that saved are mapped into memory, and each rank copies from them
what is its own now, element by element by the parameter's name. So the checkpoint stays as it is, there is no copy
that could be half written, and what was in the optimizer is in it again to the bit. DeepSpeed's own loading, which
wants the same ranks, stage and even `round_robin_gradients` without checking them, is not used.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from trelm_ds.errors import UserError
from trelm_ds.training.checkpoint import CheckpointInfo
from trelm_ds.training.distributed import Ranks, import_deepspeed
from trelm_ds.training.engine import parameter_groups
from trelm_ds.training.saved_state import WEIGHT, SavedState, open_saved_state

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


def load(engine: DeepSpeedEngine, checkpoint: Path, info: CheckpointInfo, zero_stage: int, ranks: Ranks) -> None:
    """Restores weights, optimizer, schedule and counters from a verified checkpoint; collective.

    Args:
        engine: new, of this run.
        checkpoint: of any number of ranks and any ZeRO stage.
        info: its manifest.
        zero_stage: of this run.
        ranks: of this run.

    Raises:
        UserError: the files cannot be read on some rank, or are of another model.
    """
    saved = ranks.all_agree(lambda: _open(engine, checkpoint, info.zero_stage))
    _load_weights(engine, saved, ranks)
    _load_optimizer(engine, saved)
    engine.lr_scheduler.load_state_dict(saved.common["lr_scheduler"])
    for counter in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, counter, saved.common[counter])
    if ranks.rank == 0 and (info.world_size, info.zero_stage) != (ranks.world_size, zero_stage):
        before, now = _layout(info.world_size, info.zero_stage), _layout(ranks.world_size, zero_stage)
        print(f"{checkpoint}: saved by {before}, continued by {now}", file=sys.stderr, flush=True)


def _layout(world_size: int, zero_stage: int) -> str:
    return f"{world_size} rank{'s' * (world_size != 1)} under ZeRO {zero_stage}"


def _open(engine: DeepSpeedEngine, checkpoint: Path, zero_stage: int) -> SavedState:
    saved = open_saved_state(checkpoint, zero_stage, _names_in_order(engine))
    shapes = {
        name: tuple(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in engine.module.named_parameters()
    }
    for name in sorted(shapes.keys() | saved.shapes.keys()):
        if shapes.get(name) != saved.shapes.get(name):
            raise UserError(
                f"{checkpoint}: {name} is {saved.shapes.get(name)} there and {shapes.get(name)} in this run; go on "
                "with the model and settings that it was saved with"
            )
    return saved


def _load_weights(engine: DeepSpeedEngine, saved: SavedState, ranks: Ranks) -> None:
    """The model's own weights, frozen ones too, in the precision it computes with."""
    deepspeed = import_deepspeed()
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):  # under ZeRO 3; does nothing otherwise
            if ranks.rank == 0 or not hasattr(parameter, "ds_id"):
                parameter.data.copy_(saved.weight(name))


def _load_optimizer(engine: DeepSpeedEngine, saved: SavedState) -> None:
    """This rank's part of the fp32 weights and of the optimizer's state."""
    optimizer = _base_optimizer(engine)
    for group, of_group in zip(optimizer.param_groups, saved.groups, strict=True):
        group.update(of_group)  # the schedule's learning rate among them
    by_master = itertools.groupby(_slots(engine), key=lambda slot: id(slot.master))
    for slots in [list(slots) for _, slots in by_master]:
        for slot in slots:
            saved.copy(slot.name, WEIGHT, slot.start, slot.of(slot.master))
        updated = [slot for slot in slots if slot.name in saved.steps]
        if not updated:  # every step so far was skipped: the optimizer starts as at the start
            continue
        master, step = slots[0].master, max(saved.steps[slot.name] for slot in updated)
        state: dict[str, Any] = {"step": torch.tensor(step, dtype=torch.float32)}
        for key, dtype in saved.state_dtypes(updated[0].name).items():
            state[key] = torch.zeros_like(master, dtype=dtype, requires_grad=False)
            for slot in updated:
                saved.copy(slot.name, key, slot.start, slot.of(state[key]))
        optimizer.state[master] = state


def _base_optimizer(engine: DeepSpeedEngine) -> torch.optim.Optimizer:
    """Ours, which DeepSpeed wraps but for ZeRO 0 in fp32."""
    optimizer: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return optimizer


def _names_in_order(engine: DeepSpeedEngine) -> list[str]:
    """The trained parameters in the order of the optimizer that `build_engine` has made."""
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    groups = parameter_groups(
        engine.module, 0.0, any(group.get("lazy") for group in _base_optimizer(engine).param_groups)
    )
    return [names[parameter] for group in groups for parameter in group["params"]]


def _slots(engine: DeepSpeedEngine) -> Iterator[Slot]:
    """All of this rank, those of one master together."""
    optimizer, stage, rank = engine.optimizer, engine.zero_optimization_stage(), torch.distributed.get_rank()
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    groups = [group["params"] for group in _base_optimizer(engine).param_groups]
    if stage == 0:  # a master for each parameter
        for name, master in zip(_names_in_order(engine), itertools.chain(*groups), strict=True):
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
