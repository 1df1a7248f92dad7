"""Evaluation of trained models, one set of modules per task."""

from trelm_ds.evaluation.lama import evaluate_lama
from trelm_ds.evaluation.lama_report import format_table, plot, write_result

__all__ = ["evaluate_lama", "format_table", "plot", "write_result"]
