"""Pre-training on the DeepSpeed engine: batches, loop, checkpoints, tracking."""

from trelm_ds.training.export import export
from trelm_ds.training.trainer import pretrain

__all__ = ["export", "pretrain"]
