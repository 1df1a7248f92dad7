"""Finished intermediate results of preparation on disk, identified by their inputs, not by their names.

An artifact is a folder with data files and `done.json`, which holds the key (a hash of all inputs) and the sha256 of
every file. It is moved into place by a rename, so it is either complete or absent; if it does not match, it is rebuilt.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trelm_ds.files import canonical_json, fsync_path, fsync_tree, sha256_of

DONE = "done.json"
_ROOMS = ("corpus", "knowledge", "shards")
_LIBRARIES = ("mwparserfromhell", "sentencex", "tokenizers", "transformers", "numpy", "marisa-trie")


@cache
def code_version() -> str:
    """Hash the code and library versions that preparation depends on, so that a change invalidates all artifacts."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    rooms = (path for room in _ROOMS for path in (package / room).rglob("*.py"))
    for module in sorted([*package.glob("*.py"), *rooms]):
        digest.update(module.read_bytes())
    digest.update(canonical_json([version(name) for name in _LIBRARIES]).encode())
    return digest.hexdigest()


def key_of(*parts: Any) -> str:
    """Hash everything that determines an artifact's content, including this code."""
    return hashlib.sha256(canonical_json([code_version(), *parts]).encode()).hexdigest()


@dataclass(frozen=True)
class Artifact:
    """A finished intermediate result.

    Attributes:
        folder: its folder.
        notes: JSON values recorded by its maker.
        digest: hash of key and content, for the keys of artifacts made from it.
    """

    folder: Path
    notes: dict[str, Any]
    digest: str


def find(folder: Path, key: str) -> Artifact | None:
    """Return the artifact in `folder` if its files are intact and it has this key, else None."""
    try:
        done = json.loads((folder / DONE).read_bytes())
        if done["key"] != key or any(sha256_of(folder / name) != sha for name, sha in done["files"].items()):
            return None
        return Artifact(folder, done["notes"], _digest(done))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@contextlib.contextmanager
def make(folder: Path, key: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield a folder to write to and a dict for notes (JSON values); move both into place if the block succeeds."""
    work = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}")  # pids are not unique across machines
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    notes: dict[str, Any] = {}
    try:
        yield work, notes
        files = {str(path.relative_to(work)): sha256_of(path) for path in sorted(work.rglob("*")) if path.is_file()}
        (work / DONE).write_text(json.dumps({"key": key, "files": files, "notes": notes}))
        fsync_tree(work)
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            work.rename(folder)  # fails if another process was faster; its content is the same
        fsync_path(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _digest(done: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json([done["key"], done["files"]]).encode()).hexdigest()


def obtain(folder: Path, key: str) -> Artifact:
    """Return the artifact that `make` has just put in place.

    Raises:
        OSError: it is missing or damaged.
    """
    found = find(folder, key)
    if found is None:
        raise OSError(f"{folder} was damaged or removed while it was being made")
    return found
