"""The data of the tasks that a model is fine-tuned for, read from the formats in which they are published."""

from trelm_ds.evaluation.tasks.entity_typing import read_typing
from trelm_ds.evaluation.tasks.glue import TASKS as GLUE_TASKS
from trelm_ds.evaluation.tasks.glue import glue_tasks, read_glue
from trelm_ds.evaluation.tasks.relation_extraction import read_relation
from trelm_ds.evaluation.tasks.task import Example, Kind, Scores, Task

__all__ = [
    "GLUE_TASKS",
    "Example",
    "Kind",
    "Scores",
    "Task",
    "glue_tasks",
    "read_glue",
    "read_relation",
    "read_typing",
]
