"""GLUE's eight tasks of the paper's Table 3, from the TSV files as published (Wang et al., 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trelm_ds.errors import UserError
from trelm_ds.evaluation.scorers import accuracy, f1, matthews, pearson, spearman
from trelm_ds.evaluation.tasks.records import find_split
from trelm_ds.evaluation.tasks.task import Example, Kind, Scores, Task, check_labels
from trelm_ds.files import read_lines

_HINT = "give GLUE's folder, with CoLA/, MRPC/ ... as published"


def _accuracy(gold: Sequence[str], predicted: Sequence[str]) -> Scores:
    return {"accuracy": accuracy(gold, predicted)}


def _accuracy_f1(gold: Sequence[str], predicted: Sequence[str]) -> Scores:
    return {"accuracy": accuracy(gold, predicted), "f1": f1(gold, predicted, positive="1")}


def _matthews(gold: Sequence[str], predicted: Sequence[str]) -> Scores:
    return {"matthews": matthews(gold, predicted), "accuracy": accuracy(gold, predicted)}


def _correlations(gold: Sequence[float], predicted: Sequence[float]) -> Scores:
    return {"pearson": pearson(gold, predicted), "spearman": spearman(gold, predicted)}


@dataclass(frozen=True)
class GlueTask:
    """Where a task's files have what, and how it is scored.

    Attributes:
        folder: its name in GLUE.
        columns: of the text or texts, by the header; by number where there is none.
        label: likewise, of the label.
        score: computes the metrics; the first of them is the one in the paper's Table 3.
        labels: names of the labels, all of them; empty for a regression.
        dev: names of the dev splits' files; "dev" is the first.
        ragged: whether the published file has lines with columns missing, which everyone leaves out.
    """

    folder: str
    columns: tuple[str | int, ...]
    label: str | int
    score: Callable[[Sequence[Any], Sequence[Any]], Scores]
    labels: tuple[str, ...] = ("0", "1")
    dev: tuple[str, ...] = ("dev",)
    ragged: bool = False

    @property
    def name(self) -> str:
        """Its name on the command line and in results."""
        return self.folder.lower()


TASKS = {
    task.name: task
    for task in (
        GlueTask("CoLA", (3,), 1, _matthews),
        GlueTask("SST-2", ("sentence",), "label", _accuracy),
        GlueTask("MRPC", ("#1 String", "#2 String"), "Quality", _accuracy_f1),
        GlueTask("STS-B", ("sentence1", "sentence2"), "score", _correlations, labels=()),
        GlueTask("QQP", ("question1", "question2"), "is_duplicate", _accuracy_f1, ragged=True),
        GlueTask(
            "MNLI",
            ("sentence1", "sentence2"),
            "gold_label",
            _accuracy,
            labels=("contradiction", "entailment", "neutral"),
            dev=("dev_matched", "dev_mismatched"),
        ),
        GlueTask("QNLI", ("question", "sentence"), "label", _accuracy, labels=("entailment", "not_entailment")),
        GlueTask("RTE", ("sentence1", "sentence2"), "label", _accuracy, labels=("entailment", "not_entailment")),
    )
}


def glue_tasks(folder: Path, wanted: Iterable[str] = ()) -> list[str]:
    """List the tasks to run: those wanted, else all that the folder has.

    Raises:
        UserError: an unknown task, or one without a folder.
    """
    if not folder.is_dir():
        raise UserError(f"--data: {folder} is not a folder; {_HINT}")
    if unknown := [name for name in wanted if name not in TASKS]:
        raise UserError(f"--tasks: '{unknown[0]}' is none of {', '.join(TASKS)}")
    found = [name for name in TASKS if _folder(folder, TASKS[name]) is not None]
    if missing := [name for name in wanted if name not in found]:
        raise UserError(f"--data: {folder} has no {TASKS[missing[0]].folder}/; {_HINT}")
    if not found:
        raise UserError(f"--data: {folder} has none of {', '.join(task.folder for task in TASKS.values())}; {_HINT}")
    return list(wanted) or found


def read_glue(folder: Path, name: str) -> Task:
    """Read a task of GLUE's folder. What is scored is dev, since the test splits have no labels.

    MNLI has two dev splits, "dev" (matched) and "dev_mismatched". Labels are read by name, so their order in a file
    says nothing.

    Raises:
        UserError: a file is missing, empty or malformed, or has an unknown label; names file and line.
    """
    of = TASKS[name]
    place = _folder(folder, of)
    if place is None:
        raise UserError(f"--data: {folder} has no {of.folder}/; {_HINT}")
    notes: dict[str, int] = {}
    train = _read(find_split(place, "train.tsv", hint=_HINT), of, notes)
    evaluated = {
        "dev" if number == 0 else split: _read(find_split(place, f"{split}.tsv", hint=_HINT), of, notes)
        for number, split in enumerate(of.dev)
    }
    if of.labels:
        check_labels(train, evaluated, "fetch the task again")
    return Task(
        name=name,
        kind=Kind.SINGLE if of.labels else Kind.REGRESSION,
        labels=of.labels or ("score",),
        train=train,
        evaluated=evaluated,
        reported="dev",
        score=of.score,
        metric=next(iter(of.score([*"01"], [*"01"]) if of.labels else of.score([0, 1], [0, 1]))),
        notes=notes,
    )


def _folder(folder: Path, of: GlueTask) -> Path | None:
    """Find a task's folder, whatever its case."""
    return next((path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.lower() == of.name), None)


def _read(path: Path, of: GlueTask, notes: dict[str, int]) -> list[Example]:
    rows = _rows(path)
    header = None if isinstance(of.label, int) else next(rows, (1, []))[1]
    wanted = [_column(column, header, path) for column in (*of.columns, of.label)]
    examples = []
    for number, row in rows:
        place = f"{path}:{number}"
        if max(wanted) >= len(row):
            if of.ragged:
                reason = f"lines of {of.folder} with columns missing"
                notes[reason] = notes.get(reason, 0) + 1
                continue
            raise UserError(f"{place}: has {len(row)} columns, needs {max(wanted) + 1}; fetch the file again")
        *sentences, label = (row[column] for column in wanted)
        if not any(sentence.strip() for sentence in sentences):  # in two pairs of QQP the second question is empty
            raise UserError(f"{place}: the text is empty")
        examples.append(Example(tuple(sentences), _target(label, of, place), place))
    if not examples:
        raise UserError(f"{path}: holds no example")
    return examples


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, columns). Quotes mean nothing in these files."""
    for number, line in read_lines(path):
        if line.strip():
            yield number, line.split("\t")


def _column(column: str | int, header: list[str] | None, path: Path) -> int:
    if isinstance(column, int):
        return column
    assert header is not None
    if column not in header:
        raise UserError(f"{path}:1: has no column '{column}'; fetch the file as GLUE publishes it")
    return header.index(column)


def _target(label: str, of: GlueTask, place: str) -> str | float:
    if of.labels:
        if label not in of.labels:
            raise UserError(f"{place}: the label '{label[:40]}' is none of {', '.join(of.labels)}")
        return label
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{place}: the score must be a number, got '{label[:40]}'")
    return value
