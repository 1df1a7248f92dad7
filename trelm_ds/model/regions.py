"""Where hidden states enter and leave the part of a layer that tensor parallelism has cut (megatron-core).

megatron-core 0.16 hands a tensor that is not contiguous back unreduced, without a word, forward and backward (mended in
0.19). So whatever enters its mappings here is made contiguous.
"""

from __future__ import annotations

import torch.distributed as dist
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from torch import Tensor


def copy_to_region(states: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the states as they are; their gradient is summed over the ranks."""
    entered: Tensor = copy_to_tensor_model_parallel_region(states, group)
    if entered.requires_grad:
        entered.register_hook(Tensor.contiguous)
    return entered


def reduce_from_region(partial: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum the ranks' parts, in place where they are contiguous; the gradient is that of each of them."""
    summed: Tensor = reduce_from_tensor_model_parallel_region(partial.contiguous(), group)
    return summed
