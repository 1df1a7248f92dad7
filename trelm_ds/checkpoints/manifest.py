"""Checkpoint manifests: what is in a checkpoint, and whether its files are still as written.

Without a manifest a folder is no checkpoint. The manifest holds size and hash of every file, and a hash of itself, so
damage and mix-ups are found before anything is loaded.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from trelm_ds import __version__, log
from trelm_ds.errors import UnreadableError, UserError
from trelm_ds.files import canonical_json, read_json, sha256_of
from trelm_ds.run_folder import MANIFEST, checkpoints_folder, committed

SCHEMA = 3
_OWN_HASH = "sha256"  # the manifest's key for the hash of everything else in it


@dataclass
class CheckpointInfo:
    """The manifest of one checkpoint.

    Attributes:
        step: optimizer steps done.
        world_size: number of ranks that wrote it.
        tensor_parallel: how many of them shared a model.
        zero_stage: ZeRO stage it was written under.
        identity: what a run that continues from it must share: the encoder's Hugging Face configuration ("model"), the
            dataset's fingerprint, seeds, global batch size and more; see `resume.identity`.
        order: where reading continues: seed, window_blocks, epoch, position in it, tail, the dataset's fingerprint.
        files: path within the checkpoint -> [bytes, sha256].
        versions: version of each library that wrote it.
        guard: recent losses and skipped steps, as `Guard.manifest` returns them.
        decay: under schedule wsd, steps done when the learning rate's decay begins and ends in the run that wrote it.
        mlflow: key of the run in MLflow, used where the run folder has lost its spool.
    """

    step: int
    world_size: int
    zero_stage: int
    identity: dict[str, Any]
    order: dict[str, Any]
    files: dict[str, list[Any]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    guard: dict[str, Any] = field(default_factory=dict)
    decay: list[int] | None = None
    tensor_parallel: int = 1
    mlflow: str = ""
    schema: int = SCHEMA

    def to_json(self) -> str:
        """Serialize the manifest, with a hash of itself."""
        content = json.loads(json.dumps(asdict(self)))  # tuples become lists, as a reader sees them
        return json.dumps(content | {_OWN_HASH: _hash_of(content)}, indent=1) + "\n"


def _hash_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def read_verified(checkpoint: Path) -> CheckpointInfo:
    """Read a checkpoint's manifest and check the size and hash of every file against it.

    Raises:
        UserError: not a checkpoint, or a file is missing, changed, not listed or unreadable; names the file.
    """
    path = checkpoint / MANIFEST
    if not path.is_file():
        raise UserError(f"{checkpoint} is no committed checkpoint: it has no {MANIFEST}")
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UserError(f"{path}: not a checkpoint manifest of schema {SCHEMA}; this program cannot read it")
    if content.pop(_OWN_HASH, None) != _hash_of(content):
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
    with ThreadPoolExecutor(8) as threads:  # hashing releases the GIL
        for problem in threads.map(lambda item: _problem(checkpoint / item[0], *item[1]), listed.items()):
            if problem is not None:
                raise UserError(problem)
    return info


def _problem(file: Path, size: int, digest: str) -> str | None:
    """Return what is wrong with a listed file; None where it is as written."""
    try:
        if not file.is_file():
            return f"{file}: missing from the checkpoint"
        if file.stat().st_size != size or sha256_of(file) != digest:
            return f"{file}: its content does not match the checkpoint's manifest"
    except OSError as error:
        problem = UnreadableError(file, error)
        if not problem.lost:
            raise problem from None
        return str(problem)
    return None


def last_good(run: Path) -> tuple[Path, CheckpointInfo] | None:
    """Find the newest sound checkpoint of a run, warning of each damaged one passed over; None where there are none.

    Raises:
        UserError: there are checkpoints, but none is sound; or the newest cannot be read now.
    """
    candidates = committed(run)
    passes = False
    for checkpoint in candidates:
        try:
            return checkpoint, read_verified(checkpoint)
        except UserError as error:
            # What cannot be read now may be sound, and the run would remove it once it has gone on from an older one.
            if isinstance(error, UnreadableError) and not error.lost:
                raise
            log.warning(f"checkpoint passed over: {error}")
            passes |= error.passes
    if candidates:
        none = UserError(f"{checkpoints_folder(run)}: no checkpoint is sound; restore one, or start with another --out")
        none.passes = passes
        raise none
    return None


def versions() -> dict[str, str]:
    """Return the versions of this program and of the libraries that checkpoints depend on."""
    import deepspeed
    import transformers

    return {
        "trelm_ds": __version__,
        "torch": str(torch.__version__),
        "deepspeed": deepspeed.__version__,
        "transformers": transformers.__version__,
    }
