"""Checkpoints: saved while training goes on, committed atomically, restored on any number of ranks, exported."""

from trelm_ds.checkpoints.export import export, open_model
from trelm_ds.checkpoints.listing import list_checkpoints, prune_run, to_table
from trelm_ds.checkpoints.manifest import CheckpointInfo, versions
from trelm_ds.checkpoints.pending_save import Captured
from trelm_ds.checkpoints.pooler import capture_pooler, read_pooler
from trelm_ds.checkpoints.restore import load
from trelm_ds.checkpoints.resume import check_decay, choose_checkpoint, identity
from trelm_ds.checkpoints.saver import Saver

__all__ = [
    "Captured",
    "CheckpointInfo",
    "Saver",
    "capture_pooler",
    "check_decay",
    "choose_checkpoint",
    "export",
    "identity",
    "list_checkpoints",
    "load",
    "open_model",
    "prune_run",
    "read_pooler",
    "to_table",
    "versions",
]
