"""The small tasks and models, ready to be fine-tuned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.evaluation.tiny_tasks import write_glue, write_model, write_relation, write_typing
from trelm_ds.evaluation.finetuning.encoding import ExampleEncoder
from trelm_ds.evaluation.finetuning.folder import open_pretrained
from trelm_ds.evaluation.finetuning.options import FinetuneOptions
from trelm_ds.evaluation.finetuning.trainer import FineTuning
from trelm_ds.evaluation.finetuning.workers import Alone, Workers
from trelm_ds.evaluation.tasks import Task, read_glue, read_relation, read_typing

Once = Callable[[str, Callable[[Path], object]], Path]


def options(**changes: object) -> FinetuneOptions:
    return FinetuneOptions(**{"epochs": 2, "batch_size": 8, "patience": 0} | changes)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def tiny_tasks(once: Once) -> Path:
    """Folder with bert/, bare/ (no pooler), typing/, relation/ and glue/."""

    def make(folder: Path) -> None:
        write_model(folder / "bert", hidden_dropout_prob=0, attention_probs_dropout_prob=0)
        write_model(folder / "bare", pooler=False)
        write_typing(folder / "typing")
        write_relation(folder / "relation")
        write_glue(folder / "glue")

    return once("tiny_tasks", make)


def read_task(folder: Path, name: str) -> Task:
    reads = {"typing": read_typing, "relation": read_relation}
    return reads[name](folder / name) if name in reads else read_glue(folder / "glue", name)


def tuning(
    folder: Path,
    name: str,
    given: FinetuneOptions,
    model: str = "bert",
    workers: Workers | None = None,
    kind: type[FineTuning] = FineTuning,
) -> FineTuning:
    task, opened = read_task(folder, name), open_pretrained(folder / model)
    encoder = ExampleEncoder(opened.tokenizer, 32, 2, shortens=False)
    splits = {split: encoder.encode(task, examples) for split, examples in task.splits.items()}
    together = workers or Alone(torch.device("cpu"))
    return kind(task, splits, opened.encoder, opened.pooler, given, together)
