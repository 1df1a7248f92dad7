"""What a checkpoint holds of weights and optimizer, by parameter, whatever ranks and ZeRO stage wrote it.

DeepSpeed's files are pickles: a checkpoint is opened here only after its files have matched its manifest.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trelm_ds.distributed import import_deepspeed
from trelm_ds.errors import UserError

_ZERO3_MODEL = "zero_pp_rank_{}_mp_rank_00_model_states.pt"
WEIGHT = "weight"  # in fp32, beside the optimizer's own names


class Fragment(NamedTuple):
    """A part of one parameter as one rank has saved it.

    Attributes:
        start: its first element, of the flattened parameter.
        tensors: [n] each: `WEIGHT`, and what the optimizer keeps for each element, as far as there is any yet.
    """

    start: int
    tensors: dict[str, Tensor]


@dataclass
class SavedState:
    """Weights, optimizer and schedule. The files are mapped into memory: only what is copied is read.

    Attributes:
        shapes: of every parameter, by name.
        fragments: of every parameter, ascending; without state of the optimizer where the parameter is frozen.
        steps: the optimizer's step of each parameter that it has updated.
        groups: the optimizer's parameter groups, without parameters.
        common: the rest of what DeepSpeed keeps of a run: counters, learning rate schedule.
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    fragments: dict[str, list[Fragment]] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)
    common: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, size: int, weight: Tensor, state: dict[str, Any]) -> None:
        """Adds the next fragment of a parameter.

        Args:
            name: of the parameter.
            size: its elements from the fragment's first one on, at least: what follows in the tensors is padding.
            weight: of any shape; likewise the tensors in `state`.
            state: of the optimizer, empty before its first step.
        """
        before = self.fragments.setdefault(name, [])
        start = before[-1].start + before[-1].tensors[WEIGHT].numel() if before else 0
        # Interned as in a program's own text, so that what is saved next has the same bytes: pickle tells equal strings
        # apart by their identity.
        kept = {sys.intern(key): value for key, value in state.items() if key != "step"}
        tensors = {key: value.reshape(-1)[:size] for key, value in ({WEIGHT: weight} | kept).items()}
        before.append(Fragment(start, tensors))
        if "step" in state:
            self.steps[name] = float(state["step"])

    def state_dtypes(self, name: str) -> dict[str, torch.dtype]:
        """What the optimizer keeps for each element of a parameter."""
        return {key: tensor.dtype for key, tensor in self.fragments[name][0].tensors.items() if key != WEIGHT}

    def copy(self, name: str, key: str, start: int, out: Tensor) -> None:
        """Copies the elements of a parameter from `start` on into `out` [n]."""
        for fragment in self.fragments[name]:
            tensor = fragment.tensors[key]
            first, last = max(start, fragment.start), min(start + len(out), fragment.start + len(tensor))
            if first < last:
                out[first - start : last - start].copy_(tensor[first - fragment.start : last - fragment.start])

    def weight(self, name: str) -> Tensor:
        """A parameter in fp32 and in its own shape, on the CPU."""
        shape = self.shapes[name]
        whole = torch.empty(shape)
        self.copy(name, WEIGHT, 0, whole.view(-1))
        return whole


def open_saved_state(checkpoint: Path, zero_stage: int, names: Sequence[str] = ()) -> SavedState:
    """Opens the files of all ranks.

    Args:
        checkpoint: verified.
        zero_stage: under which it was written.
        names: the parameters in the optimizer's order. ZeRO 0 saves its state without their names; where they are not
            given, weights are read alone.

    Raises:
        UserError: a file cannot be read here.
    """
    import_deepspeed()  # whose classes are in its files
    read = {0: _whole, 1: _partitioned, 2: _partitioned, 3: _partitioned_by_parameter}[zero_stage]
    try:
        return read(checkpoint, names)
    except OSError as error:
        raise UserError(
            f"{checkpoint}: cannot be read ({error}); here every rank needs the files of all ranks that saved it, so "
            "the folder has to be shared by all nodes"
        ) from None


def _load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=False)
    return content


def _common(model_states: dict[str, Any]) -> dict[str, Any]:
    return {name: model_states[name] for name in ("global_steps", "global_samples", "skipped_steps", "lr_scheduler")}


def _groups(optimizer: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer["param_groups"]]


def _add_module(saved: SavedState, module: dict[str, Tensor]) -> None:
    """Shapes of all parameters, and weights of those without a master copy: the frozen ones, all of fp32 ZeRO 0."""
    for name, tensor in module.items():
        saved.shapes[name] = tuple(tensor.shape)
        if name not in saved.fragments:
            saved.add(name, tensor.numel(), tensor, {})


def _whole(checkpoint: Path, names: Sequence[str]) -> SavedState:
    """ZeRO 0: all ranks hold the same, and rank 0 saves it."""
    model_states = _load(checkpoint / "mp_rank_00_model_states.pt")
    saved, optimizer, module = (
        SavedState(common=_common(model_states)),
        model_states["optimizer"],
        model_states["module"],
    )
    inner = optimizer.get("optimizer_state_dict", optimizer)  # bf16 wraps it, and keeps weights in fp32 beside it
    masters = [master for group in optimizer.get("fp32_groups", ()) for master in group]
    saved.groups = _groups(inner)
    for index, name in enumerate(names):
        weight = masters[index] if masters else module[name]
        saved.add(name, weight.numel(), weight, inner["state"].get(index, {}))
    _add_module(saved, module)
    return saved


def _partitioned(checkpoint: Path, _: Sequence[str]) -> SavedState:
    """ZeRO 1 and 2: each group is one flat tensor, cut into as many pieces as there are ranks."""
    model_states = _load(checkpoint / "mp_rank_00_model_states.pt")
    saved = SavedState(common=_common(model_states))
    for rank, optimizer in enumerate(_optimizers(checkpoint, model_states["dp_world_size"])):
        inner = optimizer["base_optimizer_state"]
        saved.groups = _groups(inner)
        # Not by "param_slice_mappings", which are wrong where DeepSpeed reorders a group (round_robin_gradients).
        layout = zip(
            optimizer["single_partition_of_fp32_groups"],
            optimizer["group_paddings"],
            model_states["param_shapes"],
            optimizer["param_alignment_paddings"],
            strict=True,
        )
        for index, (flat, padding, shapes, paddings) in enumerate(layout):
            length, offset = len(flat) + padding, -rank * (len(flat) + padding)  # of the group, seen from this piece
            for (name, shape), gap in zip(shapes.items(), paddings, strict=True):
                first, last = max(0, offset), min(offset + shape.numel(), length)
                if first < last:
                    state = _narrowed(inner["state"].get(index, {}), first, last - first)
                    saved.add(name, last - first, flat[first:last], state)
                offset += shape.numel() + gap
    _add_module(saved, model_states["module"])
    return saved


def _partitioned_by_parameter(checkpoint: Path, _: Sequence[str]) -> SavedState:
    """ZeRO 3: each parameter is cut into as many pieces as there are ranks, the last ones padded or padding alone."""
    first = _load(checkpoint / _ZERO3_MODEL.format(0))
    world_size, groups, frozen = first["dp_world_size"], first["param_shapes"], first["frozen_param_shapes"]
    saved = SavedState(common=_common(first))
    for shapes in (*groups, frozen):
        saved.shapes |= {name: tuple(shape) for name, shape in shapes.items()}
    sizes = {name: torch.Size(shape).numel() for name, shape in saved.shapes.items()}
    for rank, optimizer in enumerate(_optimizers(checkpoint, world_size)):
        inner = optimizer["optimizer_state_dict"]
        saved.groups = _groups(inner)
        for index, (flat, shapes) in enumerate(zip(optimizer["fp32_flat_groups"], groups, strict=True)):
            offset = 0
            for name in shapes:
                length = -(-sizes[name] // world_size)
                state = _narrowed(inner["state"].get(index, {}), offset, length)
                saved.add(name, max(0, sizes[name] - rank * length), flat.narrow(0, offset, length), state)
                offset += length
        pieces = _load(checkpoint / _ZERO3_MODEL.format(rank))["frozen_param_fragments"]
        for name, piece in pieces.items():
            saved.add(name, max(0, sizes[name] - rank * len(piece)), piece, {})
    return saved


def _optimizers(checkpoint: Path, world_size: int) -> Iterable[dict[str, Any]]:
    for rank in range(world_size):
        name = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        path = checkpoint / name
        content = _load(path if path.is_file() else checkpoint / f"bf16_{name}")
        optimizer: dict[str, Any] = content["optimizer_state_dict"]
        yield optimizer


def _narrowed(state: dict[str, Any], start: int, length: int) -> dict[str, Any]:
    return {key: value if key == "step" else value.narrow(0, start, length) for key, value in state.items()}
