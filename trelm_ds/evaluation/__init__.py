"""Evaluation of trained models, one set of modules per task."""

from trelm_ds.evaluation.comparison import compare_models, find_models, to_html, to_markdown
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
from trelm_ds.evaluation.lama import LamaOptions, LamaResult, evaluate_lama, format_lama, plot_lama, write_lama
from trelm_ds.evaluation.results import check_not_another
from trelm_ds.evaluation.tasks import Task, glue_tasks, read_glue, read_relation, read_typing

__all__ = [
    "Alone",
    "Evaluation",
    "FinetuneOptions",
    "LamaOptions",
    "LamaResult",
    "Task",
    "Together",
    "Workers",
    "check_not_another",
    "compare_models",
    "evaluate",
    "evaluate_lama",
    "find_device",
    "find_models",
    "format_lama",
    "format_result",
    "glue_tasks",
    "plot_lama",
    "plot_result",
    "read_glue",
    "read_relation",
    "read_typing",
    "to_html",
    "to_markdown",
    "write_lama",
]
