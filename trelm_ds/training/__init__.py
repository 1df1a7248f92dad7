"""Pre-training on the DeepSpeed engine: batches, loop, checkpoints, tracking."""

from trelm_ds.training.export import export, open_model
from trelm_ds.training.routing import FOLDER as ROUTING_FOLDER
from trelm_ds.training.trainer import pretrain

__all__ = ["ROUTING_FOLDER", "export", "open_model", "pretrain"]
