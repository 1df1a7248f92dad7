"""Fine-tuning for the tasks: a small trainer on packed batches, a run for every learning rate and seed."""

from trelm_ds.evaluation.finetuning.evaluation import Evaluation, average, evaluate
from trelm_ds.evaluation.finetuning.options import FinetuneOptions
from trelm_ds.evaluation.finetuning.report import format_result, plot_result
from trelm_ds.evaluation.finetuning.workers import Alone, Together, Workers

__all__ = [
    "Alone",
    "Evaluation",
    "FinetuneOptions",
    "Together",
    "Workers",
    "average",
    "evaluate",
    "format_result",
    "plot_result",
]
