"""Count what a rank hands to the collectives of torch.distributed, by group and by kind."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trelm_ds.distributed import Ranks

# By torch's names of the operators, to which all forms of a call come down: asynchronous, coalesced and DeepSpeed's.
KINDS = {
    "allreduce_": "all-reduce",
    "allreduce_coalesced_": "all-reduce",
    "allgather_": "all-gather",
    "_allgather_base_": "all-gather",
    "allgather_coalesced_": "all-gather",
    "allgather_into_tensor_coalesced_": "all-gather",
    "reduce_scatter_": "reduce-scatter",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor_coalesced_": "reduce-scatter",
    "alltoall_": "all-to-all",
    "alltoall_base_": "all-to-all",
    "broadcast_": "broadcast",
}
TENSOR, DATA, ALL, CONTROL = "tensor-parallel", "data-parallel", "all", "control"
Bytes = dict[str, dict[str, int]]
"""by group and kind"""


class Exchanged(TorchDispatchMode):
    """Counts while it is entered.

    A collective counts with the bytes of its larger side: of a reduction what is reduced, of an all-gather what comes
    out, of a reduce-scatter what goes in. Control is what the gloo group for small messages carries, and single
    numbers. On ranks that do not share models, the data-parallel group is that of all. Groups of one rank send nothing.

    Attributes:
        bytes: counted so far.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.bytes: Bytes = {}
        everyone = tuple(range(ranks.world_size))
        alike = next(one for one in ranks.data.alike or (everyone,) if ranks.rank in one)
        self._labels = {everyone: ALL, alike: DATA}
        if ranks.tensor is not None:
            self._labels[tuple(dist.get_process_group_ranks(ranks.tensor.group))] = TENSOR
        self._control = {ranks.control.group_name, ranks.data.control.group_name}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.namespace != "_c10d_functional", f"{func.name()} is not counted"
        if func.namespace == "c10d":
            self._count(func.name().removeprefix("c10d::"), args)
        return func(*args, **kwargs or {})

    def _count(self, name: str, args: Any) -> None:
        group = next(dist.ProcessGroup.unbox(arg) for arg in args if isinstance(arg, torch.ScriptObject))
        if group.size() == 1:
            return
        sides = [[leaf for leaf in tree_leaves(arg) if isinstance(leaf, torch.Tensor)] for arg in args]
        numbers = max(sum(tensor.numel() for tensor in side) for side in sides)
        size = max(sum(tensor.numel() * tensor.element_size() for tensor in side) for side in sides)
        small = numbers == 1 or group.group_name in self._control
        label = CONTROL if small else self._labels[tuple(dist.get_process_group_ranks(group))]
        kinds, kind = self.bytes.setdefault(label, {}), KINDS.get(name, name)
        kinds[kind] = kinds.get(kind, 0) + size
