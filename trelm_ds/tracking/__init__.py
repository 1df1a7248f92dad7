"""Track a run: metrics in the run folder, always, and MLflow, if enabled."""

from trelm_ds.tracking.journal import Journal
from trelm_ds.tracking.system_metrics import SystemMetrics
from trelm_ds.tracking.uploader import sync

__all__ = [
    "Journal",
    "SystemMetrics",
    "sync",
]
