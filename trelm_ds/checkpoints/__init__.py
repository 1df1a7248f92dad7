"""Checkpoints: written beside training, committed by manifest and rename, loaded on any number of ranks, exported."""

from trelm_ds.checkpoints.export import export, open_model
from trelm_ds.checkpoints.listing import catalogue, prune_run, to_table
from trelm_ds.checkpoints.manifest import CheckpointInfo, versions
from trelm_ds.checkpoints.restore import load
from trelm_ds.checkpoints.resume import choose_checkpoint, identity
from trelm_ds.checkpoints.saver import Captured, Saver

__all__ = [
    "Captured",
    "CheckpointInfo",
    "Saver",
    "catalogue",
    "choose_checkpoint",
    "export",
    "identity",
    "load",
    "open_model",
    "prune_run",
    "to_table",
    "versions",
]
