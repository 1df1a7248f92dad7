"""A result file as sets of examples, each with the figures that a model has on it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trelm_ds.errors import UserError
from trelm_ds.evaluation.results import predictions_file
from trelm_ds.files import read_json
from trelm_ds.visible import visible

FINETUNED = ("typing", "relation", "glue")
LAMA = "lama"
RANK_METRICS = ("p_at_1", "p_at_10", "mrr")


class SetKey(NamedTuple):
    """Name of a set of examples.

    Attributes:
        task: "typing", "relation", a task of GLUE, or "lama".
        part: the split; of LAMA the part, such as "trex", or "trex/GROUPING/GROUP".
    """

    task: str
    part: str


class Figure(NamedTuple):
    """A metric's mean over seeds, sample standard deviation (None for a single value) and values."""

    mean: float
    std: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, content: Any) -> Figure:
        """Read a spread of `evaluation.results`, or a single number."""
        if not isinstance(content, dict):
            return cls(_number(content), None, (_number(content),))
        std = None if content["std"] is None else _number(content["std"])
        return cls(_number(content["mean"]), std, tuple(map(_number, content["values"])))


@dataclass(frozen=True)
class EvaluatedSet:
    """What a model scored on a set of examples.

    Attributes:
        key: which set.
        figures: by metric.
        baseline: score of the most frequent answer, by metric.
        examples: how many there are.
        data: what must be equal for two results to be of the same data, by what a reader calls it.
        runs: number of seeds; None where nothing was trained.
        scoring: what the scores depend on beside labels and predictions, as `Task.scoring`.
        result: the file that says so.
        predictions: file of the predictions; None where there is none.
    """

    key: SetKey
    figures: dict[str, Figure]
    baseline: dict[str, float]
    examples: int
    data: dict[str, Any]
    runs: int | None
    scoring: dict[str, str | None]
    result: Path
    predictions: Path | None


class Result(NamedTuple):
    """A result file: the model's folder as it was given to `trelm evaluate`, and what was scored."""

    path: Path
    model: str
    sets: list[EvaluatedSet]


def read_result(path: Path) -> Result:
    """Read a result of `trelm evaluate typing | relation | glue | lama`.

    Raises:
        UserError: the file is missing, damaged, or holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("task") not in (*FINETUNED, LAMA):
        raise UserError(f"{path}: is no result of `trelm evaluate`; give its --out file, or a folder with such files")
    try:
        sets = list(_lama(content, path) if content["task"] == LAMA else _finetuned(content, path))
        return Result(path, _text(content["model"]), sets)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else one_line(str(error))[:100]
        raise UserError(
            f"{path}: is no whole result of this version's `trelm evaluate` ({reason}); make it again"
        ) from None


def _finetuned(content: dict[str, Any], path: Path) -> Iterator[EvaluatedSet]:
    predictions = _predictions(content, path)
    for task, of in (content.get("tasks") or {content["task"]: content}).items():
        counts = {name: _count(number) for name, number in of["examples"].items()}
        for split, metrics in of["splits"].items():
            figures = {name: Figure.of(spread) for name, spread in metrics.items()}
            baseline = {name: _number(of["baseline"][split][name]) for name in figures}
            (runs,) = {len(figure.values) for figure in figures.values()}
            scoring = {name: None if value is None else _text(value) for name, value in of["scoring"].items()}
            # In the order in which a reader looks for what differs.
            data: dict[str, Any] = {_words(name): value for name, value in scoring.items()}
            data |= {f"examples of {name}": number for name, number in counts.items()}
            data |= {f"{_words(name)} of the most frequent answer": round(score, 9) for name, score in baseline.items()}
            key = SetKey(_text(task), _text(split))
            yield EvaluatedSet(key, figures, baseline, counts[split], data, runs, scoring, path, predictions)


def _lama(content: dict[str, Any], path: Path) -> Iterator[EvaluatedSet]:
    about = content["candidates"]
    # Words shared with other tokenizers are the same words, however many tokens they are of each.
    candidates = "words shared with other tokenizers" if about["common_with"] else _count(about["n_tokens"])
    predictions = _predictions(content, path)
    for part, scores in content["parts"].items():
        scored = {(): scores} | {
            (grouping, group): of for grouping, groups in scores["groups"].items() for group, of in groups.items()
        }
        for group, of in scored.items():
            figures = {name: Figure.of(of[name]) for name in RANK_METRICS if of[name] is not None}
            if not figures:
                continue
            baseline = {name: _number(of["majority_baseline"][name]) for name in figures}
            if not group:
                micro = scores["micro"]
                figures |= {f"micro_{name}": Figure.of(micro[name]) for name in RANK_METRICS}
                baseline |= {f"micro_{name}": _number(micro["majority_baseline"][name]) for name in RANK_METRICS}
            facts = _count(of["n_facts"])
            data = {"facts": facts, "relations": _count(of["n_relations"]), "candidates": candidates}
            if group[:1] == ("name",):
                data["filters of LAMA-UHN"] = " and ".join(map(_words, scores["uhn"]["filters"]))
            key = SetKey(LAMA, "/".join((part, *group)))
            yield EvaluatedSet(key, figures, baseline, facts, data, None, {}, path, predictions)


def _predictions(content: dict[str, Any], path: Path) -> Path | None:
    """Find the predictions beside the result, under the name that it gives or that of a result that was renamed."""
    given = content.get("predictions")
    names = ([Path(_text(given)).name] if given else []) + [predictions_file(path).name]
    found = (path.with_name(name) for name in names if name)
    return next((file for file in found if os.path.isfile(file)), None)  # Path's own raises for odd names


def one_line(text: str) -> str:
    """Return a text of files as one line that no terminal obeys."""
    return visible(" ".join(text.split()))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:40]!r} where a number should be")
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{str(value)[:40]!r} where a number of examples should be")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} where a text should be")
    return value
