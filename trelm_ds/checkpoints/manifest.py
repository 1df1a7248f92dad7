"""Checkpoints as they lie on disk: what they say of themselves, whether they are sound (DESIGN 6)."""

from __future__ import annotations

import hashlib
import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from trelm_ds import __version__
from trelm_ds.errors import UserError
from trelm_ds.files import canonical_json, read_json, sha256_of
from trelm_ds.run_folder import MANIFEST, checkpoints_folder, committed

SCHEMA = 3
_SUM = "sha256"  # in the manifest, of all else in it


@dataclass
class CheckpointInfo:
    """The manifest of one checkpoint.

    Attributes:
        step: optimizer steps done.
        world_size: ranks that wrote it.
        zero_stage: of DeepSpeed.
        identity: what a continuation must have in common with it: the encoder's Hugging Face configuration ("model"),
            the dataset's fingerprint, seeds, global batch size ...
        order: where reading goes on: seed, window_blocks, epoch, position in it, tail, the dataset's fingerprint.
        files: path within the checkpoint -> [bytes, sha256].
        versions: of the libraries that wrote it.
        guard: losses and skipped steps, as `Guard.manifest` gives them.
        mlflow: key of the run in MLflow, for where the run folder has lost its spool.
    """

    step: int
    world_size: int
    zero_stage: int
    identity: dict[str, Any]
    order: dict[str, Any]
    files: dict[str, list[Any]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    guard: dict[str, Any] = field(default_factory=dict)
    mlflow: str = ""
    schema: int = SCHEMA

    def to_json(self) -> str:
        """The manifest's text, with a hash of itself."""
        content = json.loads(json.dumps(asdict(self)))
        return json.dumps(content | {_SUM: _sum_of(content)}, indent=1) + "\n"


def _sum_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def read_verified(checkpoint: Path) -> CheckpointInfo:
    """Reads a checkpoint's manifest and checks every file's size and hash against it.

    Raises:
        UserError: not a checkpoint, or a file is missing or changed; names it.
    """
    path = checkpoint / MANIFEST
    if not path.is_file():
        raise UserError(f"{checkpoint} is no committed checkpoint: it has no {MANIFEST}")
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UserError(f"{path}: not a checkpoint manifest of schema {SCHEMA}; this program cannot read it")
    if content.pop(_SUM, None) != _sum_of(content):
        raise UserError(f"{path}: changed since it was written")
    try:
        info = CheckpointInfo(**content)
        listed = {str(name): (int(size), str(digest)) for name, (size, digest) in info.files.items()}
        info.identity["model"]["model_type"]
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"{path}: damaged manifest ({error!r})") from None
    for file in checkpoint.rglob("*"):
        if file.is_file() and file != path and str(file.relative_to(checkpoint)) not in listed:
            raise UserError(f"{file}: not in the checkpoint's manifest; nothing vouches for it")
    with ThreadPoolExecutor(8) as threads:  # hashing leaves the interpreter to others
        for problem in threads.map(lambda item: _problem(checkpoint / item[0], *item[1]), listed.items()):
            if problem is not None:
                raise UserError(problem)
    return info


def _problem(file: Path, size: int, digest: str) -> str | None:
    try:
        if not file.is_file():
            return f"{file}: missing from the checkpoint"
        if file.stat().st_size != size or sha256_of(file) != digest:
            return f"{file}: its content does not match the checkpoint's manifest"
    except OSError as error:
        return f"{file}: cannot be read: {error.strerror}"
    return None


def last_good(run: Path) -> tuple[Path, CheckpointInfo] | None:
    """The newest checkpoint whose files are all as written; warns for each that had to be passed over.

    Raises:
        UserError: there are checkpoints, but none is sound.
    """
    candidates = committed(run)
    for checkpoint in candidates:
        try:
            return checkpoint, read_verified(checkpoint)
        except UserError as error:
            warnings.warn(f"checkpoint passed over: {error}", stacklevel=2)
    if candidates:
        raise UserError(f"{checkpoints_folder(run)}: no checkpoint is sound; restore one, or start with another --out")
    return None


def versions() -> dict[str, str]:
    """Of this program and the libraries that train."""
    import deepspeed
    import transformers

    return {
        "trelm_ds": __version__,
        "torch": str(torch.__version__),
        "deepspeed": deepspeed.__version__,
        "transformers": transformers.__version__,
    }
