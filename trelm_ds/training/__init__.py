"""Pre-training: one run built from its settings, its loop, and the guards around it."""

from trelm_ds.training.first_failure import FailedElsewhereError
from trelm_ds.training.pretrain import pretrain

__all__ = ["FailedElsewhereError", "pretrain"]
