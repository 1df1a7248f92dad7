"""Files of results: one JSON file a task, predictions beside it."""

from __future__ import annotations

import gzip
import io
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from trelm_ds.errors import UserError
from trelm_ds.files import write_atomically


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, sample standard deviation (None for a single value) and the values."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "values": list(values)}


def spreads(scores: Sequence[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Return the spread of every metric over runs."""
    return {metric: spread([of_run[metric] for of_run in scores]) for metric in scores[0]}


def check_not_another(path: Path, task: str, model: Path) -> None:
    """Refuse to replace what is no result of this task and model.

    Raises:
        UserError: `path` holds something else.
    """
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        what = f"the result of {before['task']} for {before['model']}"
        same = before["task"] == task and Path(before["model"]).resolve() == model.resolve()
    except (OSError, ValueError, TypeError, KeyError):
        what, same = "something that is no result", False
    if not same:
        raise UserError(f"--out: {path} holds {what}; give another file, or remove it")


def write_result(result: dict[str, Any], path: Path) -> None:
    """Write a result as JSON, atomically.

    Raises:
        UserError: `path` cannot be written.
    """
    _write(path, json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def write_predictions(lines: Iterable[dict[str, Any]], path: Path) -> None:
    """Write predictions as compressed JSON Lines, atomically; equal ones give equal bytes.

    Raises:
        UserError: `path` cannot be written.
    """
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as stream:
        for line in lines:
            stream.write((json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8"))
    _write(path, packed.getvalue())


def predictions_file(out: Path) -> Path:
    """Name the predictions of a result file."""
    return out.with_suffix(".predictions.jsonl.gz")


def _write(path: Path, content: bytes | str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); give another file") from None
