"""Follows a run: log points in its folder, always; MLflow, if enabled. Rank 0 only."""

from trelm_ds.tracking.journal import Journal
from trelm_ds.tracking.system_metrics import SystemMetrics
from trelm_ds.tracking.uploader import sync

__all__ = [
    "Journal",
    "SystemMetrics",
    "sync",
]
