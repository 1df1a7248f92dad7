"""Read weights and optimizer state from DeepSpeed's files, by parameter, for every ZeRO stage and number of ranks.

DeepSpeed's files are pickles, so a checkpoint may be opened here only after its files have matched its manifest.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trelm_ds.distributed import import_deepspeed
from trelm_ds.errors import UserError

_MODEL = "mp_rank_{:02d}_model_states.pt"
_ZERO3_MODEL = "zero_pp_rank_{}_mp_rank_{:02d}_model_states.pt"
_OPTIMIZER = "zero_pp_rank_{}_mp_rank_{:02d}_optim_states.pt"
# Checkpoints from when queries, keys and values had a matrix each have three parameters in the place of one.
_JOINED, _QUERY = ".attention.qkv.", ".attention.query."
WEIGHT = "weight"  # key of the fp32 weight, beside the optimizer's own keys (exp_avg, ...)


class Fragment(NamedTuple):
    """The part of one parameter that one rank saved.

    Attributes:
        start: index of its first element in the flattened parameter.
        tensors: [n] each: `WEIGHT`, and the optimizer's per-element state where it has any yet.
    """

    start: int
    tensors: dict[str, Tensor]


@dataclass
class SavedState:
    """Weights, optimizer state and schedule of a checkpoint, with the files mapped into memory, not read.

    Attributes:
        shapes: shape of every parameter, by name.
        fragments: fragments of every parameter, in ascending order; a frozen parameter's hold only the weight.
        steps: the optimizer's step count for each parameter that it has updated.
        groups: the optimizer's parameter groups, without their parameters.
        common: everything else that DeepSpeed saves and a run needs: step counters and learning-rate schedule.
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    fragments: dict[str, list[Fragment]] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)
    common: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, size: int, weight: Tensor, state: dict[str, Any]) -> None:
        """Append the next fragment of a parameter.

        Args:
            name: name of the parameter.
            size: number of elements; tensors may be longer, and the rest is padding.
            weight: any shape; likewise the tensors in `state`.
            state: the optimizer's state, empty before its first step.
        """
        fragments = self.fragments.setdefault(name, [])
        start = fragments[-1].start + fragments[-1].tensors[WEIGHT].numel() if fragments else 0
        # Keys are interned like string literals, so that the next checkpoint has the same bytes as an undisturbed
        # run's: pickle memoizes strings by identity, so equal strings that are different objects are written twice.
        per_element = {sys.intern(key): value for key, value in state.items() if key != "step"}
        tensors = {key: value.reshape(-1)[:size] for key, value in ({WEIGHT: weight} | per_element).items()}
        fragments.append(Fragment(start, tensors))
        if "step" in state:
            self.steps[name] = float(state["step"])

    def join(self, parts: Sequence[str], whole: str) -> None:
        """Make one parameter of several, one after another along their first dimension."""
        shapes = [self.shapes.pop(part) for part in parts]
        steps = [self.steps.pop(part) for part in parts if part in self.steps]
        start, fragments = 0, list[Fragment]()
        for part, shape in zip(parts, shapes, strict=True):
            moved = self.fragments.pop(part)
            fragments += [fragment._replace(start=fragment.start + start) for fragment in moved]
            start += torch.Size(shape).numel()
        self.shapes[whole] = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        self.fragments[whole] = fragments
        if steps:
            self.steps[whole] = max(steps)

    def state_dtypes(self, name: str) -> dict[str, torch.dtype]:
        """Return the keys and dtypes of the optimizer's per-element state of a parameter."""
        return {key: tensor.dtype for key, tensor in self.fragments[name][0].tensors.items() if key != WEIGHT}

    def copy(self, name: str, key: str, start: int, out: Tensor) -> None:
        """Copy elements `start` to `start + n` of a flattened parameter, or of its state `key`, into `out` [n]."""
        for fragment in self.fragments[name]:
            tensor = fragment.tensors[key]
            first, last = max(start, fragment.start), min(start + len(out), fragment.start + len(tensor))
            if first < last:
                out[first - start : last - start].copy_(tensor[first - fragment.start : last - fragment.start])

    def weight(self, name: str) -> Tensor:
        """Assemble a whole parameter in fp32, in its own shape, on the CPU."""
        shape = self.shapes[name]
        whole = torch.empty(shape)
        self.copy(name, WEIGHT, 0, whole.view(-1))
        return whole


def open_saved_state(checkpoint: Path, zero_stage: int, names: Sequence[str] = (), tensor_rank: int = 0) -> SavedState:
    """Open the files that all ranks saved, or of tensor parallelism, those with one part of the model.

    Args:
        checkpoint: verified against its manifest.
        zero_stage: the stage it was written under.
        tensor_rank: which part.
        names: the trained parameters in the optimizer's order. Needed for the optimizer state of ZeRO 0, which is saved
            without names; if left out, only weights are read there.

    Raises:
        UserError: a file cannot be read on this rank.
    """
    import_deepspeed()  # the pickles refer to its classes
    read = {0: _read_zero0, 1: _read_zero12, 2: _read_zero12, 3: _read_zero3}[zero_stage]
    try:
        saved = read(checkpoint, names, tensor_rank)
    except OSError as error:
        raise UserError(
            f"{checkpoint}: cannot be read ({error}); here every rank needs the files of all ranks that saved it, so "
            "the folder has to be shared by all nodes"
        ) from None
    for name in [name for name in saved.shapes if _QUERY in name]:
        saved.join(_apart(name.replace(_QUERY, _JOINED)), name.replace(_QUERY, _JOINED))
    return saved


def _load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=False)
    for key in ("module", "frozen_param_shapes", "frozen_param_fragments"):
        if isinstance(content.get(key), dict):
            content[key] = _with_todays_names(content[key])
    if content.get("param_shapes"):  # ZeRO 0 has none
        content["param_shapes"] = [_with_todays_names(shapes) for shapes in content["param_shapes"]]
    return content


def _with_todays_names(by_name: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the decoder "product" of checkpoints from when it was not an objective's."""
    return {re.sub(r"^decoder\.", "objectives.cka.decoder.", name): value for name, value in by_name.items()}


def _apart(name: str) -> list[str]:
    """Name the parameters that were in the place of one."""
    return [name.replace(_JOINED, f".attention.{part}.") for part in ("query", "key", "value")]


def _common(model_states: dict[str, Any]) -> dict[str, Any]:
    return {name: model_states[name] for name in ("global_steps", "global_samples", "skipped_steps", "lr_scheduler")}


def _groups(optimizer: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer["param_groups"]]


def _add_module(saved: SavedState, module: dict[str, Tensor]) -> None:
    """Add the shapes of all parameters, and the weights of those without a master copy.

    Frozen parameters have none, and under ZeRO 0 in fp32 no parameter has.
    """
    for name, tensor in module.items():
        saved.shapes[name] = tuple(tensor.shape)
        if name not in saved.fragments:
            saved.add(name, tensor.numel(), tensor, {})


def _read_zero0(checkpoint: Path, names: Sequence[str], tensor_rank: int) -> SavedState:
    """ZeRO 0: all ranks hold the same state, and the first has saved it."""
    model_states = _load(checkpoint / _MODEL.format(tensor_rank))
    saved = SavedState(common=_common(model_states))
    optimizer, module = model_states["optimizer"], model_states["module"]
    inner = optimizer.get("optimizer_state_dict", optimizer)  # bf16 wraps it, with fp32 master weights beside it
    masters = [master for group in optimizer.get("fp32_groups", ()) for master in group]
    saved.groups = _groups(inner)
    if any(_QUERY in name for name in module):
        names = [each for name in names for each in (_apart(name) if _JOINED in name else [name])]
    for index, name in enumerate(names):
        weight = masters[index] if masters else module[name]
        saved.add(name, weight.numel(), weight, inner["state"].get(index, {}))
    _add_module(saved, module)
    return saved


def _read_zero12(checkpoint: Path, _: Sequence[str], tensor_rank: int) -> SavedState:
    """ZeRO 1 and 2: each group's parameters form one flat tensor, cut into one piece per rank."""
    model_states = _load(checkpoint / _MODEL.format(tensor_rank))
    saved = SavedState(common=_common(model_states))
    for rank, optimizer in enumerate(_optimizers(checkpoint, model_states["dp_world_size"], tensor_rank)):
        inner = optimizer["base_optimizer_state"]
        saved.groups = _groups(inner)
        # "param_slice_mappings" would say this directly, but is wrong where DeepSpeed reorders a group's parameters
        # (round_robin_gradients). So derive the pieces from the shapes.
        groups, paddings_of_pieces = model_states["param_shapes"], optimizer["group_paddings"]
        gaps = optimizer.get("param_alignment_paddings")
        if gaps is None:  # BF16_Optimizer, which puts nothing between parameters and saves pieces with their padding
            gaps, paddings_of_pieces = [[0] * len(shapes) for shapes in groups], [0] * len(groups)
        pieces = optimizer["single_partition_of_fp32_groups"]
        layout = zip(pieces, paddings_of_pieces, groups, gaps, strict=True)
        for index, (flat, padding, shapes, paddings) in enumerate(layout):
            # The offset of each parameter in the group, counted from the start of this rank's piece.
            length, offset = len(flat) + padding, -rank * (len(flat) + padding)
            for (name, shape), gap in zip(shapes.items(), paddings, strict=True):
                first, last = max(0, offset), min(offset + shape.numel(), length)
                if first < last:
                    state = _narrow(inner["state"].get(index, {}), first, last - first)
                    saved.add(name, last - first, flat[first:last], state)
                offset += shape.numel() + gap
    _add_module(saved, model_states["module"])
    return saved


def _read_zero3(checkpoint: Path, _: Sequence[str], tensor_rank: int) -> SavedState:
    """ZeRO 3: each parameter is cut into one piece per rank; the last pieces may be partly or wholly padding."""
    first = _load(checkpoint / _ZERO3_MODEL.format(0, tensor_rank))
    world_size, groups, frozen = first["dp_world_size"], first["param_shapes"], first["frozen_param_shapes"]
    saved = SavedState(common=_common(first))
    for shapes in (*groups, frozen):
        saved.shapes |= {name: tuple(shape) for name, shape in shapes.items()}
    sizes = {name: torch.Size(shape).numel() for name, shape in saved.shapes.items()}
    for rank, optimizer in enumerate(_optimizers(checkpoint, world_size, tensor_rank)):
        inner = optimizer["optimizer_state_dict"]
        saved.groups = _groups(inner)
        for index, (flat, shapes) in enumerate(zip(optimizer["fp32_flat_groups"], groups, strict=True)):
            offset = 0
            for name in shapes:
                length = -(-sizes[name] // world_size)
                state = _narrow(inner["state"].get(index, {}), offset, length)
                saved.add(name, max(0, sizes[name] - rank * length), flat.narrow(0, offset, length), state)
                offset += length
        pieces = _load(checkpoint / _ZERO3_MODEL.format(rank, tensor_rank))["frozen_param_fragments"]
        for name, piece in pieces.items():
            saved.add(name, max(0, sizes[name] - rank * len(piece)), piece, {})
    return saved


def _optimizers(checkpoint: Path, world_size: int, tensor_rank: int) -> Iterable[dict[str, Any]]:
    """Yield the optimizer state that each rank saved, in order of ranks."""
    for rank in range(world_size):
        name = _OPTIMIZER.format(rank, tensor_rank)
        path = checkpoint / name
        content = _load(path if path.is_file() else checkpoint / f"bf16_{name}")
        optimizer: dict[str, Any] = content["optimizer_state_dict"]
        yield optimizer


def _narrow(state: dict[str, Any], start: int, length: int) -> dict[str, Any]:
    """Restrict the optimizer's per-element state to a range of elements."""
    return {key: value if key == "step" else value.narrow(0, start, length) for key, value in state.items()}
