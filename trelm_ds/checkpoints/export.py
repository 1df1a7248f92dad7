"""A checkpoint as a plain Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from torch import Tensor

from trelm_ds.checkpoints import manifest as checkpoint
from trelm_ds.checkpoints.saved_state import open_saved_state
from trelm_ds.errors import UserError
from trelm_ds.model import EXPORTED, EncoderConfig, MaskedLanguageModel, load_pretrained, save_pretrained
from trelm_ds.run_folder import MANIFEST


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
    if (source / MANIFEST).is_file():
        folder, info = source, checkpoint.read_verified(source)
    else:
        found = checkpoint.last_good(source)
        if found is None:
            raise UserError(f"{source}: neither a run folder with checkpoints nor a checkpoint")
        folder, info = found
    every = full_weights(folder, info.zero_stage)
    weights = {name: tensor for name, tensor in every.items() if name.startswith(EXPORTED)}
    return folder, EncoderConfig.from_hf(info.identity["model"]), weights


def full_weights(folder: Path, zero_stage: int) -> dict[str, Tensor]:
    """The weights of a verified checkpoint, in fp32, gathered from all ranks' files."""
    saved = open_saved_state(folder, zero_stage)
    return {name: saved.weight(name) for name in saved.shapes}
