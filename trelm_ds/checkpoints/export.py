"""Export checkpoints as plain Hugging Face folders, and open models from either."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from trelm_ds.checkpoints import manifest as checkpoint
from trelm_ds.checkpoints.pooler import read_pooler
from trelm_ds.checkpoints.recut import recut
from trelm_ds.checkpoints.saved_state import open_saved_state
from trelm_ds.errors import UserError
from trelm_ds.knowledge.tables import ShardedTable
from trelm_ds.model import (
    EXPORTED,
    EncoderConfig,
    MaskedLanguageModel,
    load_pretrained,
    neuron_parts,
    save_pretrained,
)
from trelm_ds.routing import NEURONS_TABLE, PATHS_FILE, ROUTING_FOLDER, first_neurons, read_paths
from trelm_ds.run_folder import MANIFEST


class OpenedModel(NamedTuple):
    """A model and where it came from.

    Attributes:
        model: holds the weights of a checkpoint or of a Hugging Face folder.
        tokenizer: the tokenizer's folder.
        source: the checkpoint, or the Hugging Face folder.
    """

    model: MaskedLanguageModel
    tokenizer: Path
    source: Path


def open_model(source: Path) -> OpenedModel:
    """Load the model of a run's last sound checkpoint, of a given checkpoint, or of a Hugging Face folder.

    Raises:
        UserError: `source` is none of the three, or damaged.
    """
    if (source / "config.json").is_file():
        return OpenedModel(load_pretrained(source), source, source)
    folder, config, weights = _read(source)
    model = MaskedLanguageModel(config)
    model.load_state_dict(weights)
    return OpenedModel(model, folder / "tokenizer", folder)


def export(source: Path, out: Path) -> Path:
    """Write a checkpoint as `config.json`, `model.safetensors` (fp32) and tokenizer files.

    The pooler of the model that the run started from is part of it.

    Args:
        source: a checkpoint, or a run folder, which stands for its last sound checkpoint.
        out: the folder to write.

    Returns:
        the checkpoint that was exported.

    Raises:
        UserError: there is no sound checkpoint, or `out` holds something else or cannot be written.
    """
    folder, config, weights = _read(source)
    try:
        save_pretrained(weights, config, out, folder / "tokenizer", read_pooler(folder, config))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{out}: cannot be written: {' '.join(str(error).split())}") from None
    return folder


def _read(source: Path) -> tuple[Path, EncoderConfig, dict[str, Tensor]]:
    """Find and verify a checkpoint; return it with its encoder's configuration and the fp32 weights to export.

    The product decoder's weights are left out: it serves pre-training only.
    """
    if (source / MANIFEST).is_file():
        folder, info = source, checkpoint.read_verified(source)
    else:
        found = checkpoint.last_good(source)
        if found is None:
            raise UserError(f"{source}: neither a run folder with checkpoints nor a checkpoint")
        folder, info = found
    weights = full_weights(folder, info)
    weights = {name: tensor for name, tensor in weights.items() if name.startswith(EXPORTED)}
    return folder, EncoderConfig.from_hf(info.identity["model"]), weights


def full_weights(folder: Path, info: checkpoint.CheckpointInfo) -> dict[str, Tensor]:
    """Assemble the fp32 weights of a verified checkpoint, given its manifest, from the files of all ranks."""
    parts = [open_saved_state(folder, info.zero_stage, (), part) for part in range(info.tensor_parallel)]
    saved = recut(parts, 0, 1, info.identity["model"]["vocab_size"], weights_only=True)
    weights = {name: saved.weight(name) for name in saved.shapes}
    return _with_all_neurons(weights, folder / ROUTING_FOLDER)


def _with_all_neurons(weights: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Put the neurons on the path, which compact routing has as parameters, among the others of its table."""
    if not any(folder.glob(f"{NEURONS_TABLE}-*")):
        return weights
    layers = sorted({name.rsplit(".", 1)[0] for name in weights if name.endswith(".feed_forward.keys")}, key=_number)
    chosen, size = weights[f"{layers[-1]}.keys"].shape
    routed = [layer for layer in layers if len(weights[f"{layer}.keys"]) == chosen]
    shards = list(ShardedTable.saved(folder, NEURONS_TABLE, 2 * size + 1))
    table = torch.empty(sum(len(rows) for _, rows in shards), 2 * size + 1)
    for place, rows in shards:
        table[place] = rows
    neurons = len(table) // len(routed)
    paths = first_neurons(neurons, chosen).expand(len(routed), -1)
    if (folder / PATHS_FILE).is_file():  # else of a run before its first choice
        paths = read_paths(folder)["path"]
    for layer, rows, path in zip(routed, table.split(neurons), paths, strict=True):
        for name, whole in neuron_parts(rows).items():
            weights[f"{layer}.{name}"] = whole.index_copy(0, path, weights[f"{layer}.{name}"])
    return weights


def _number(layer: str) -> int:
    return int(layer.split(".")[2])
