"""The ranks as a grid: t neighbours hold one model in parts (tensor parallelism), the others hold it as well.

Only runs with `model.tensor_parallel` above 1 import megatron-core, whose groups these are.
"""

from __future__ import annotations

import os
import socket
import warnings

import torch.distributed as dist

from trelm_ds.distributed import Ranks, TensorGroup
from trelm_ds.errors import UserError


class _Grid(Ranks):
    def __init__(self, ranks: Ranks, data: Ranks, tensor: TensorGroup) -> None:
        super().__init__(ranks.rank, ranks.world_size, ranks.local_rank, ranks.device, ranks.control)
        self.__dict__ |= {"_data": data, "_tensor": tensor}  # the class is frozen

    @property
    def data(self) -> Ranks:
        data: Ranks = self.__dict__["_data"]
        return data

    @property
    def tensor(self) -> TensorGroup:
        tensor: TensorGroup = self.__dict__["_tensor"]
        return tensor


def split(ranks: Ranks, degree: int) -> Ranks:
    """Arrange the ranks in groups of t neighbours, which share a model; collective. With t = 1 nothing is done.

    Raises:
        UserError: t does not divide the ranks of a node.
    """
    if degree == 1:
        return ranks
    hosts = ranks.gather(socket.gethostname())
    ranks.all_agree(lambda: _check(degree, hosts))
    with warnings.catch_warnings():  # of megatron-core's optimizers, which are not used here
        warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed")
        from megatron.core import parallel_state

    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=degree, create_gloo_process_groups=False)
    group = parallel_state.get_tensor_model_parallel_group()
    assert group.size() == degree
    # Every t-th rank holds the same part.
    alike = tuple(tuple(range(first, ranks.world_size, degree)) for first in range(degree))
    control, _ = dist.new_subgroups_by_enumeration([list(one) for one in alike], backend="gloo")
    place, size = ranks.rank // degree, ranks.world_size // degree
    data = Ranks(place, size, ranks.local_rank, ranks.device, control, alike)
    return _Grid(ranks, data, TensorGroup(ranks.rank % degree, degree, group))


def _check(degree: int, hosts: list[str]) -> None:
    """Check that t neighbours are on one node always; `hosts`: the host of every rank."""
    # Not every launcher says how many processes a node has.
    local = int(os.environ.get("LOCAL_WORLD_SIZE", min(map(hosts.count, hosts))))
    number = f"{local} process{'es' * (local != 1)}"
    where = "the ranks that share a model must be on one"
    if local % degree or len(hosts) % degree:
        start = f"start a multiple of {degree} there (torchrun --nproc-per-node), or set 1"
        raise UserError(f"model.tensor_parallel: {degree} does not divide the {number} of a node; {where}: {start}")
    for first in range(0, len(hosts), degree):
        if len(apart := sorted(set(hosts[first : first + degree]))) > 1:
            names = f"ranks {first} to {first + degree - 1} are on {' and '.join(apart)}"
            raise UserError(f"model.tensor_parallel: {names}; {where} node, so number the ranks node by node")
