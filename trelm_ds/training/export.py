"""A checkpoint as a plain Hugging Face folder."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from trelm_ds.errors import UserError
from trelm_ds.model import DECODER, EncoderConfig, MaskedLanguageModel, load_pretrained, save_pretrained
from trelm_ds.training import checkpoint
from trelm_ds.training.distributed import import_deepspeed


class Opened(NamedTuple):
    """A model with what belongs to it.

    Attributes:
        model: with the weights of a checkpoint or of a Hugging Face folder.
        tokenizer: folder.
        source: the checkpoint, or the folder.
    """

    model: MaskedLanguageModel
    tokenizer: Path
    source: Path


def open_model(source: Path) -> Opened:
    """The model of a run's last checkpoint, of a given one, or of a Hugging Face folder.

    Raises:
        UserError: none of the three.
    """
    if (source / "config.json").is_file():
        return Opened(load_pretrained(source), source, source)
    folder, config, weights = _read(source)
    model = MaskedLanguageModel(config)
    model.load_state_dict(weights)
    return Opened(model, folder / "tokenizer", folder)


def export(source: Path, out: Path) -> Path:
    """Writes `config.json`, `model.safetensors` (fp32) and the tokenizer of a run's last checkpoint, or of a given one.

    Returns:
        the checkpoint that was exported.

    Raises:
        UserError: no sound checkpoint there, or `out` holds something else.
    """
    folder, config, weights = _read(source)
    try:
        save_pretrained(weights, config, out, folder / "tokenizer")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{out}: cannot be written: {' '.join(str(error).split())}") from None
    return folder


def _read(source: Path) -> tuple[Path, EncoderConfig, dict[str, Tensor]]:
    """The checkpoint, its encoder's sizes, and its fp32 weights without those that no exported model has."""
    if (source / checkpoint.MANIFEST).is_file():
        folder, info = source, checkpoint.read_verified(source)
    else:
        found = checkpoint.last_good(source)
        if found is None:
            raise UserError(f"{source}: neither a run folder with checkpoints nor a checkpoint")
        folder, info = found
    every = full_weights(folder, info.zero_stage)
    weights = {name: tensor for name, tensor in every.items() if not name.startswith(DECODER)}
    return folder, EncoderConfig.from_hf(info.identity["model"]), weights


def full_weights(folder: Path, zero_stage: int) -> dict[str, Tensor]:
    """The fp32 weights of a verified checkpoint, gathered from all ranks' files."""
    if zero_stage == 0:
        return _module_weights(folder)
    import_deepspeed()
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # it prints its progress
        weights: dict[str, Tensor] = get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name)
    # Under ZeRO 1 DeepSpeed looks for trained weights only; what routing has frozen is where the model itself is kept.
    return _module_weights(folder) | weights if zero_stage == 1 else weights


def _module_weights(folder: Path) -> dict[str, Tensor]:
    """The model's weights as rank 0 has saved them, in fp32."""
    # DeepSpeed's files are pickles; they were checked against the manifest's hashes before this point.
    state = torch.load(folder / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)
    return {name: tensor.float() for name, tensor in state["module"].items()}
