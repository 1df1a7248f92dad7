"""Brings a run to MLflow: a spool in the run folder, sent beside training; what the nodes are doing; the loss curve."""

from trelm_ds.tracking.mlflow_run import MlflowRun, source_tags
from trelm_ds.tracking.plot import plot_loss
from trelm_ds.tracking.system_metrics import SystemMetrics
from trelm_ds.tracking.uploader import sync, sync_all

__all__ = ["MlflowRun", "SystemMetrics", "plot_loss", "source_tags", "sync", "sync_all"]
