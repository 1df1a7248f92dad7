"""Checkpoints: committed, or they do not exist (DESIGN 6).

All ranks write into a hidden folder, which is flushed to disk, described by a manifest, renamed, and only then named by
our own pointer `latest.json`. A kill at any point leaves the last committed checkpoint as it was.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from trelm_ds import __version__
from trelm_ds.errors import UserError
from trelm_ds.files import fsync_folder, read_json, sha256_of, write_atomically

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from trelm_ds.training.distributed import Ranks

MANIFEST = "manifest.json"
POINTER = "latest.json"
SCHEMA = 2


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
    """

    step: int
    world_size: int
    zero_stage: int
    identity: dict[str, Any]
    order: dict[str, Any]
    files: dict[str, list[Any]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA


class Saved(Protocol):
    """A part of a run that has files of its own in a checkpoint."""

    def save(self, checkpoint: Path) -> None:
        """Writes them into the checkpoint's folder, those of this rank."""


def checkpoints_folder(run: Path) -> Path:
    return run / "checkpoints"


def committed(run: Path) -> list[Path]:
    """The committed checkpoints of a run, the pointed-at one first, then newest first."""
    folder = checkpoints_folder(run)
    found = sorted((path.parent for path in folder.glob(f"step-*/{MANIFEST}")), reverse=True)
    try:
        named = folder / str(json.loads((folder / POINTER).read_text(encoding="utf-8"))["checkpoint"])
    except (OSError, ValueError, TypeError, KeyError):
        return found  # no pointer, or a damaged one: the newest committed checkpoint is as good
    return sorted(found, key=lambda path: path != named)  # stable: the others stay newest first


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
    try:
        info = CheckpointInfo(**content)
        listed = {str(name): (int(size), str(digest)) for name, (size, digest) in info.files.items()}
        info.identity["model"]["model_type"]
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"{path}: damaged manifest ({error!r})") from None
    for file in checkpoint.rglob("*"):
        if file.is_file() and file != path and str(file.relative_to(checkpoint)) not in listed:
            raise UserError(f"{file}: not in the checkpoint's manifest; nothing vouches for it")
    for name, (size, digest) in listed.items():
        file = checkpoint / name
        if not file.is_file():
            raise UserError(f"{file}: missing from the checkpoint")
        if file.stat().st_size != size or sha256_of(file) != digest:
            raise UserError(f"{file}: its content does not match the checkpoint's manifest")
    return info


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


def save(
    engine: DeepSpeedEngine,
    run: Path,
    info: CheckpointInfo,
    tokenizer: Path,
    keep: int,
    ranks: Ranks,
    parts: Iterable[Saved] = (),
) -> Path:
    """Commits a checkpoint; collective. Returns its folder.

    Args:
        engine: at the end of a step.
        run: the run folder.
        info: without files and versions, which are filled here.
        tokenizer: folder that is copied into the checkpoint, so that it can be exported by itself.
        keep: how many committed checkpoints stay.
        parts: what else this rank writes into the checkpoint's folder.
    """
    folder = checkpoints_folder(run)
    final = folder / f"step-{info.step:08d}"
    work = folder / f".{final.name}.partial"
    if ranks.rank == 0:
        for left in (*folder.glob(".step-*"), *folder.glob("step-*")):
            if left.name.startswith(".") or not (left / MANIFEST).is_file():  # of a save or a removal that was killed
                shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(tokenizer, work / "tokenizer")
    ranks.barrier()
    try:
        engine.save_checkpoint(str(folder), tag=work.name, save_latest=False)
        for part in parts:
            part.save(work)
        ranks.barrier()
        if ranks.local_rank == 0:
            _flush(work)  # each node flushes what its own ranks wrote
        ranks.barrier()
        if ranks.rank == 0:
            _commit(work, final, info)
            write_atomically(folder / POINTER, json.dumps({"checkpoint": final.name, "step": info.step}) + "\n")
            _prune(run, keep)
    except (OSError, RuntimeError) as error:  # torch raises the latter when a disk is full
        free = shutil.disk_usage(folder).free if folder.is_dir() else 0
        reason = (
            f"cannot write the checkpoint ({' '.join(str(error).split())[:200]}); {free / 1e6:,.0f} MB are free there"
        )
        raise UserError(f"{folder}: {reason}; the checkpoints before it are untouched") from error
    ranks.barrier()
    return final


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir():
            fsync_folder(path)
        else:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    fsync_folder(folder)


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


def _commit(work: Path, final: Path, info: CheckpointInfo) -> None:
    paths = sorted(path for path in work.rglob("*") if path.is_file())
    info.files = {str(path.relative_to(work)): [path.stat().st_size, sha256_of(path)] for path in paths}
    info.versions = versions()
    write_atomically(work / MANIFEST, json.dumps(asdict(info), indent=1) + "\n")
    if final.exists():  # damaged, or of a continuation from an earlier step: this one replaces it
        (final / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(final)
    work.rename(final)
    fsync_folder(final.parent)


def _prune(run: Path, keep: int) -> None:
    for old in committed(run)[keep:]:
        (old / MANIFEST).unlink()  # from here on it does not exist, whatever happens to the rest
        shutil.rmtree(old, ignore_errors=True)


def load(engine: DeepSpeedEngine, checkpoint: Path, info: CheckpointInfo, world_size: int, zero_stage: int) -> None:
    """Restores weights, optimizer and schedule from a verified checkpoint; collective.

    Raises:
        UserError: it was written by another number of ranks or under another ZeRO stage.
    """
    if (info.world_size, info.zero_stage) != (world_size, zero_stage):
        raise UserError(
            f"{checkpoint}: written by {info.world_size} rank(s) under ZeRO {info.zero_stage}, this run has "
            f"{world_size} under ZeRO {zero_stage}; start it with the former, or with another --out"
        )
    loaded, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    if loaded is None:
        raise UserError(f"{checkpoint}: DeepSpeed could not load it")
