"""The device that a model is evaluated on."""

from __future__ import annotations

import torch

from trelm_ds.errors import UserError


def find_device(name: str) -> torch.device:
    """Find a device by its name; "auto" is a GPU if there is one.

    Raises:
        UserError: it is no device of torch, or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device: '{name}' is no device of torch; give auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device: must be auto, cpu or cuda, got '{name}'")
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise UserError(f"--device: '{name}' is not on this machine, which has {torch.cuda.device_count()} GPUs")
    return device
