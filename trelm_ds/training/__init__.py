"""Pre-training: one run built from its settings, its loop, and the guards around it."""

from trelm_ds.training.first_failure import FailedElsewhereError
from trelm_ds.training.pretrain import pretrain
from trelm_ds.training.routing import FOLDER as ROUTING_FOLDER

__all__ = ["ROUTING_FOLDER", "FailedElsewhereError", "pretrain"]
