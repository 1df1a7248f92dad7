"""Restore a checkpoint on any number of ranks and under any ZeRO stage, whatever it was saved under.

Nothing is converted on disk. Each rank maps the files of all ranks that saved into memory and copies the elements that
it owns now, parameter by parameter. So the checkpoint stays untouched, there is no converted copy that could be half
written, and weights and optimizer state come back bit for bit. DeepSpeed's own loading is not used: it requires the
same number of ranks, the same stage and even the same `round_robin_gradients`, and checks none of them.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trelm_ds import log
from trelm_ds.checkpoints.manifest import CheckpointInfo
from trelm_ds.checkpoints.recut import recut
from trelm_ds.checkpoints.saved_state import WEIGHT, SavedState, open_saved_state
from trelm_ds.distributed import Ranks, import_deepspeed
from trelm_ds.engine import base_optimizer, names_in_order, slots_of
from trelm_ds.errors import UserError

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def load(engine: DeepSpeedEngine, checkpoint: Path, info: CheckpointInfo, ranks: Ranks) -> None:
    """Restore weights, optimizer state, learning-rate schedule and step counters; collective.

    Args:
        engine: freshly built; modified in place.
        checkpoint: verified against its manifest, since DeepSpeed's files are pickles.
        info: its manifest.

    Raises:
        UserError: some rank cannot read the files, or they belong to another model.
    """
    # Either all ranks can read the files or none goes on: the loading below is collective.
    saved = ranks.all_agree(lambda: _open(engine, checkpoint, info, ranks))
    _load_weights(engine, saved, ranks)
    _load_optimizer(engine, saved)
    engine.lr_scheduler.load_state_dict(saved.common["lr_scheduler"])
    for counter in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, counter, saved.common[counter])
    zero_stage = engine.zero_optimization_stage()
    before = _layout(info.world_size, info.tensor_parallel, info.zero_stage)
    now = _layout(ranks.world_size, 1 if ranks.tensor is None else ranks.tensor.degree, zero_stage)
    if before != now:
        log.info_rank0(f"{checkpoint}: saved by {before}, continued by {now}")


def _layout(world_size: int, tensor_parallel: int, zero_stage: int) -> str:
    shared = f", {tensor_parallel} to a model," if tensor_parallel > 1 else ""
    return f"{world_size} rank{'s' * (world_size != 1)}{shared} under ZeRO {zero_stage}"


def _open(engine: DeepSpeedEngine, checkpoint: Path, info: CheckpointInfo, ranks: Ranks) -> SavedState:
    """Open the saved state and check that names and shapes of all parameters are the model's."""
    names, degree = names_in_order(engine), info.tensor_parallel
    parts = [open_saved_state(checkpoint, info.zero_stage, names, part) for part in range(degree)]
    rank, now = (0, 1) if ranks.tensor is None else (ranks.tensor.rank, ranks.tensor.degree)
    saved = recut(parts, rank, now, engine.module.config.vocab_size)
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
    """Fill the model's own weights, frozen ones included, in the precision it computes in."""
    deepspeed = import_deepspeed()
    for name, parameter in engine.module.named_parameters():
        # Under ZeRO 3 this gathers the parameter, and on exit scatters what rank 0 has written; else it does nothing,
        # and every rank writes its own copy. Rank 0 of those that hold the same part of the model.
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if ranks.data.rank == 0 or not hasattr(parameter, "ds_id"):
                parameter.data.copy_(saved.weight(name))


def _load_optimizer(engine: DeepSpeedEngine, saved: SavedState) -> None:
    """Fill this rank's part of the fp32 master weights and of the optimizer state."""
    optimizer = base_optimizer(engine)
    for group, saved_group in zip(optimizer.param_groups, saved.groups, strict=True):
        group.update(saved_group)  # including the current learning rate
    # Under ZeRO 1 to 3 one flat master tensor holds slices of many parameters, and the optimizer's state is per master.
    by_master = itertools.groupby(slots_of(engine), key=lambda slot: id(slot.master))
    for slots in [list(slots) for _, slots in by_master]:
        for slot in slots:
            saved.copy(slot.name, WEIGHT, slot.start, slot.of(slot.master))
        updated = [slot for slot in slots if slot.name in saved.steps]
        if not updated:  # no step has been applied yet, so there is no state
            continue
        master, step = slots[0].master, max(saved.steps[slot.name] for slot in updated)
        state: dict[str, Any] = {"step": torch.tensor(step, dtype=torch.float32)}
        for key, dtype in saved.state_dtypes(updated[0].name).items():
            state[key] = torch.zeros_like(master, dtype=dtype, requires_grad=False)
            for slot in updated:
                saved.copy(slot.name, key, slot.start, slot.of(state[key]))
        optimizer.state[master] = state
