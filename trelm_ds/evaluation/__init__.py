"""Evaluation of trained models, one set of modules per task."""

from trelm_ds.evaluation.lama import LamaOptions, LamaResult, evaluate_lama, format_lama, plot_lama, write_lama

__all__ = ["LamaOptions", "LamaResult", "evaluate_lama", "format_lama", "plot_lama", "write_lama"]
