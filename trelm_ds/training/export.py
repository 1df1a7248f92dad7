"""A checkpoint as a plain Hugging Face folder."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from trelm_ds.errors import UserError
from trelm_ds.model import DECODER, EncoderConfig, save_pretrained
from trelm_ds.training import checkpoint
from trelm_ds.training.distributed import import_deepspeed


def export(source: Path, out: Path) -> Path:
    """Writes `config.json`, `model.safetensors` (fp32) and the tokenizer of a run's last checkpoint, or of a given one.

    Returns:
        the checkpoint that was exported.

    Raises:
        UserError: no sound checkpoint there, or `out` holds something else.
    """
    if (source / checkpoint.MANIFEST).is_file():
        folder, info = source, checkpoint.read_verified(source)
    else:
        found = checkpoint.last_good(source)
        if found is None:
            raise UserError(f"{source}: neither a run folder with checkpoints nor a checkpoint")
        folder, info = found
    config = EncoderConfig.from_hf(info.identity["model"])
    every = full_weights(folder, info.zero_stage)
    weights = {name: tensor for name, tensor in every.items() if not name.startswith(DECODER)}
    try:
        save_pretrained(weights, config, out, folder / "tokenizer")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{out}: cannot be written: {' '.join(str(error).split())}") from None
    return folder


def full_weights(folder: Path, zero_stage: int) -> dict[str, Tensor]:
    """The fp32 weights of a verified checkpoint, gathered from all ranks' files."""
    if zero_stage == 0:
        # DeepSpeed's files are pickles; they were checked against the manifest's hashes before this point.
        state = torch.load(folder / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)
        return {name: tensor.float() for name, tensor in state["module"].items()}
    import_deepspeed()
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # it prints its progress
        return get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name)
