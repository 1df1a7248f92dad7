"""A run folder as it lies on disk: the names in it, and what can be read without loading torch."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trelm_ds.config import Config
from trelm_ds.errors import UserError

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
SPOOL = "mlflow_spool.jsonl"  # what MLflow is to hear
PROGRESS = "mlflow_run.json"  # how much of it MLflow has
LOCK = ".lock"  # held by the process that trains
HISTORY = "slurm/history.jsonl"  # starts and ends of its Slurm jobs
SUBMISSIONS = "submissions"  # snapshots of `trelm submit`
MANIFEST = "manifest.json"  # of a checkpoint
POINTER = "latest.json"  # in the folder of checkpoints


def checkpoints_folder(run: Path) -> Path:
    return run / "checkpoints"


def named_folders(run: Path) -> list[Path]:
    """Folders with a checkpoint's name, committed or not, newest first; whatever else lies there is not ours."""
    found = checkpoints_folder(run).glob("step-*")
    return sorted((path for path in found if re.fullmatch(r"step-\d{8,}", path.name)), key=step_of, reverse=True)


def committed(run: Path) -> list[Path]:
    """The committed checkpoints of a run, the pointed-at one first, then newest first."""
    folder = checkpoints_folder(run)
    found = [path for path in named_folders(run) if (path / MANIFEST).is_file()]
    try:
        named = folder / str(json.loads((folder / POINTER).read_text(encoding="utf-8"))["checkpoint"])
    except (OSError, ValueError, TypeError, KeyError):
        return found  # no pointer, or a damaged one: the newest committed checkpoint is as good
    return sorted(found, key=lambda path: path != named)  # stable: the others stay newest first


def step_of(checkpoint: Path) -> int:
    """Optimizer steps done, from the folder's name."""
    return int(checkpoint.name.removeprefix("step-"))


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The log points of a run, in order; a line that a kill cut short is left out."""
    path = run / METRICS
    points = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            point = json.loads(line)
        except ValueError:
            break
        numbers = isinstance(point, dict) and all(isinstance(value, int | float) for value in point.values())
        if numbers and {"step", "loss", "accuracy", "lr"} <= point.keys():
            points.append(point)
    return points


def read_objects(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines. A missing file has none; lines that are something else are passed over."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            content = json.loads(line)
        except ValueError:  # cut short by a kill
            continue
        if isinstance(content, dict):
            found.append(content)
    return found


def unsent_entries(run: Path) -> int:
    """What MLflow has not been told yet: lines of the spool."""
    sent = 0
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        sent = int(json.loads((run / PROGRESS).read_text(encoding="utf-8"))["sent"])
    try:
        with (run / SPOOL).open("rb") as stream:
            stream.seek(sent)
            return sum(line.endswith(b"\n") for line in stream)
    except OSError:
        return 0


def tracking_uri(config: Config, run: Path, environment: Mapping[str, str] = os.environ) -> str:
    """The setting, else MLFLOW_TRACKING_URI, else a sqlite file beside the run folder.

    Raises:
        UserError: such a file's path cannot stand in an address.
    """
    if given := config.tracking.uri or environment.get("MLFLOW_TRACKING_URI"):
        return given
    beside = run.resolve().parent / "mlflow.db"
    if odd := next((character for character in "?#%@" if character in str(beside)), None):
        raise UserError(f"tracking.uri: set it; the default, {beside}, has a {odd} that no address can have")
    return f"sqlite:///{beside}"
