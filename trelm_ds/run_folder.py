"""Layout of a run folder: the names in it, and readers that need no torch."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from trelm_ds.config import Config
from trelm_ds.errors import UserError
from trelm_ds.files import read_json_lines

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
SPOOL = "mlflow_spool.jsonl"  # everything to be sent to MLflow
PROGRESS = "mlflow_run.json"  # how much of the spool MLflow has
LOCK = ".lock"  # held by the process that trains
HISTORY = "slurm/history.jsonl"  # starts and ends of the run's Slurm jobs
SUBMISSIONS = "submissions"  # snapshots of `trelm submit`
MANIFEST = "manifest.json"  # in each committed checkpoint
POINTER = "latest.json"  # in the checkpoints folder: names the newest commit
# Beginnings of the names of metrics that tell of time and machine, in which equal runs differ.
TIMED = (
    "tokens_per_s",
    "sequence_tokens_per_s",
    "sequences_per_s",
    "tflops_per_device",
    "mfu",
    "data_wait_share",
    "peak_",
    "checkpoint_wait_s",
    "attribution_time_share",
    "system/",
)


def checkpoints_folder(run: Path) -> Path:
    return run / "checkpoints"


def foreign_content(run: Path) -> str | None:
    """Say what a folder is that is no run: a dataset, a model; None where a run may be in it."""
    if (run / CONFIG).is_file():
        return None
    if (run / MANIFEST).is_file():
        return "a dataset or a checkpoint"
    return "a model" if (run / "config.json").is_file() else None


def named_folders(run: Path) -> list[Path]:
    """List the folders with a checkpoint's name, committed or not, newest first; anything else there is not ours.

    Raises:
        OSError: the folder may not be read: without its checkpoints a run would begin anew.
    """
    try:
        found = list(checkpoints_folder(run).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((path for path in found if re.fullmatch(r"step-\d{8,}", path.name)), key=step_of, reverse=True)


def committed(run: Path) -> list[Path]:
    """List the committed checkpoints of a run: the one that `latest.json` names first, then newest first."""
    found = [path for path in named_folders(run) if (path / MANIFEST).is_file()]
    latest = latest_checkpoint(run)
    return sorted(found, key=lambda path: path != latest)  # stable: the others stay newest first


def latest_checkpoint(run: Path) -> Path | None:
    """Return the checkpoint that `latest.json` names, which may be gone; None where the file is missing or damaged."""
    folder = checkpoints_folder(run)
    try:
        return folder / str(json.loads((folder / POINTER).read_text(encoding="utf-8"))["checkpoint"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def step_of(checkpoint: Path) -> int:
    """Return the number of optimizer steps done, from the folder's name."""
    return int(checkpoint.name.removeprefix("step-"))


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Read the log points of a run, in order, skipping damaged lines."""
    required = {"step", "loss", "accuracy", "lr"}
    return [
        point
        for point in read_json_lines(run / METRICS)
        if required <= point.keys() and all(isinstance(value, int | float) for value in point.values())
    ]


def unsent_entries(run: Path) -> int:
    """Count the entries of the spool that MLflow does not have yet."""
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
    """Return `tracking.uri`, else MLFLOW_TRACKING_URI, else a sqlite file beside the run folder.

    Raises:
        UserError: the path of that file cannot be part of an address.
    """
    return config.tracking.uri or environment.get("MLFLOW_TRACKING_URI") or default_store(run, "tracking.uri")


def default_store(run: Path, setting: str) -> str:
    """Return the address of a sqlite file beside the run folder.

    Args:
        setting: that names another address, for the message.

    Raises:
        UserError: the path of that file cannot be part of an address.
    """
    beside = run.resolve().parent / "mlflow.db"
    if odd := next((character for character in "?#%@" if character in str(beside)), None):
        raise UserError(f"{setting}: set it; the default, {beside}, has a {odd} that no address can have")
    return f"sqlite:///{beside}"
