"""Evaluation of trained models, one set of modules per task."""

from trelm_ds.evaluation.device import find_device
from trelm_ds.evaluation.finetuning import (
    Alone,
    Evaluation,
    FinetuneOptions,
    Together,
    Workers,
    evaluate,
    format_result,
    plot_result,
)
from trelm_ds.evaluation.lama import evaluate_lama
from trelm_ds.evaluation.lama_report import format_table, plot, write_result
from trelm_ds.evaluation.tasks import Task, glue_tasks, read_glue, read_relation, read_typing

__all__ = [
    "Alone",
    "Evaluation",
    "FinetuneOptions",
    "Task",
    "Together",
    "Workers",
    "evaluate",
    "evaluate_lama",
    "find_device",
    "format_result",
    "format_table",
    "glue_tasks",
    "plot",
    "plot_result",
    "read_glue",
    "read_relation",
    "read_typing",
    "write_result",
]
