"""The ranks as a grid: t neighbours hold one model in parts (tensor parallelism), the others hold it as well.

Only runs with `model.tensor_parallel` above 1 import megatron-core, whose groups these are.
"""

from __future__ import annotations

import os
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
    local = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world_size))
    if local % degree or ranks.world_size % degree:
        raise UserError(
            f"model.tensor_parallel: {degree} does not divide the {local} processes of a node; the ranks that share a "
            f"model must be on one node: start a multiple of {degree} there (torchrun --nproc-per-node), or set 1"
        )
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
