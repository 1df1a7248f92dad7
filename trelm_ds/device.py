"""Copy to a GPU without waiting for what it computes."""

from __future__ import annotations

import torch
from torch import Tensor


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the CPU to `device`, where the copy waits its turn and the host does not.

    From pageable memory the host would wait for all that the GPU has been given to do.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
