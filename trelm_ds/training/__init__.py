"""Pre-training on the DeepSpeed engine: batches, loop, checkpoints, tracking."""

from trelm_ds.training.drain import sync
from trelm_ds.training.export import export, open_model
from trelm_ds.training.first_failure import FailedElsewhereError
from trelm_ds.training.routing import FOLDER as ROUTING_FOLDER
from trelm_ds.training.trainer import pretrain

__all__ = ["ROUTING_FOLDER", "FailedElsewhereError", "export", "open_model", "pretrain", "sync"]
