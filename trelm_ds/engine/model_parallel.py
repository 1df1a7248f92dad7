"""What DeepSpeed asks of the groups of tensor parallelism."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn

from trelm_ds.distributed import TensorGroup
from trelm_ds.model import partition_of


class ModelParallelUnit:
    """DeepSpeed's `mpu` over megatron-core's groups.

    It must have no method that sets up sequence parallelism: DeepSpeed would then leave the ranks that share a model
    out of the norm of the gradient.
    """

    def __init__(self, tensor: TensorGroup) -> None:
        from megatron.core import parallel_state

        self._tensor = tensor
        self._data: dist.ProcessGroup = parallel_state.get_data_parallel_group()

    def get_model_parallel_rank(self) -> int:
        """Return this process's place among the ranks that share a model."""
        return self._tensor.rank

    def get_model_parallel_world_size(self) -> int:
        """Return their number."""
        return self._tensor.degree

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        """Return their process group."""
        return self._tensor.group

    # DeepSpeed prefers these names.
    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group

    def get_data_parallel_rank(self) -> int:
        """Return this process's place among the ranks that hold the same part of the model."""
        return dist.get_rank(self._data)

    def get_data_parallel_world_size(self) -> int:
        """Return their number."""
        return self._data.size()

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        """Return their process group."""
        return self._data


def mark_parts(model: nn.Module) -> None:
    """Mark the parameters that tensor parallelism has cut.

    In the norm of the gradient DeepSpeed counts others once for all ranks that share a model. A parameter that another
    has replaced, as when a model leaves device meta, has lost its mark: so call this last.
    """
    for name, parameter in model.named_parameters():
        if partition_of(name) is not None:
            parameter.tensor_model_parallel = True  # type: ignore[attr-defined]


def mark_gradients(model: nn.Module) -> None:
    """Mark the gradients of marked parameters, before every step: under ZeRO 0 in bf16 DeepSpeed looks at theirs."""
    for parameter in model.parameters():
        if parameter.grad is not None and getattr(parameter, "tensor_model_parallel", False):
            parameter.grad.tensor_model_parallel = True  # type: ignore[attr-defined]
