"""The pooler of the model that a run started from: kept as it was in every checkpoint, for who exports it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import load_file, save_file

from trelm_ds.checkpoints.pending_save import Captured
from trelm_ds.model import EncoderConfig, Pooler

_FILE = "pooler.safetensors"


def capture_pooler(pooler: Pooler) -> Captured:
    """Give what a checkpoint keeps of it."""
    weights = {name: weight.detach().contiguous() for name, weight in pooler.named_parameters()}

    def write(folder: Path) -> Iterable[Path]:
        save_file(weights, folder / _FILE)
        return [folder / _FILE]

    return Captured(sum(weight.nbytes for weight in weights.values()), write)


def read_pooler(checkpoint: Path, config: EncoderConfig) -> Pooler | None:
    """Read the pooler of a verified checkpoint; None where it has none."""
    if not (checkpoint / _FILE).is_file():
        return None
    pooler = Pooler(config)
    pooler.load_state_dict(load_file(checkpoint / _FILE))
    return pooler
