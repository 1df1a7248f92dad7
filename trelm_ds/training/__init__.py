"""Pre-training: one run built from its settings, its loop, and the guards around it."""

from trelm_ds.training.compact import compact_bytes
from trelm_ds.training.dataset import RunData, open_dataset
from trelm_ds.training.first_failure import FailedElsewhereError
from trelm_ds.training.model import restrict
from trelm_ds.training.pretrain import pretrain

__all__ = ["FailedElsewhereError", "RunData", "compact_bytes", "open_dataset", "pretrain", "restrict"]
