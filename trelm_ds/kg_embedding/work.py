"""The work folder of a training: checkpoints that are committed by a manifest with hashes and a rename.

`WORK/settings.json` says what the work is for. `WORK/step-N/` holds every rank's shards and `manifest.json`; the folder
gets its name only when all of it is on disk, so a kill at any point leaves the checkpoint before.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trelm_ds import faults, log
from trelm_ds.distributed import Ranks
from trelm_ds.errors import UserError
from trelm_ds.files import canonical_json, fsync_path, read_json, sha256_of, write_atomically
from trelm_ds.kg_embedding.options import check_same
from trelm_ds.kg_embedding.updates import Embeddings

_SETTINGS, _MANIFEST = "settings.json", "manifest.json"
_KEPT = 2  # so that there is one to go back to where the newest is damaged


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        step: steps done.
        loss_sum, loss_steps: of the steps since the last entry of the history.
        history: what was measured on the way: step, epoch, loss, and metrics of the valid triples.
    """

    step: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


class WorkFolder:
    """Checkpoints of one training; every method is collective.

    Args:
        folder: created where it is missing.
        identity: `VectorOptions.identity`.

    Raises:
        UserError: the folder holds the work of other settings, or something else; or cannot be written.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], ranks: Ranks) -> None:
        self._folder, self._ranks = folder, ranks
        ranks.all_agree(lambda: self._claim(identity) if ranks.rank == 0 else None)

    def _claim(self, identity: dict[str, Any]) -> None:
        settings = self._folder / _SETTINGS
        if settings.is_file() and self._committed():
            made = read_json(settings)
            check_same(made if isinstance(made, dict) else {}, identity, f"--work: {self._folder}")
        elif not settings.is_file() and any(path.name != ".lock" for path in self._folder.iterdir()):
            raise UserError(f"--work: {self._folder} holds something else; choose a new folder")
        else:
            write_atomically(settings, json.dumps(identity, indent=1) + "\n")

    def restore(self, embeddings: Embeddings) -> Progress | None:
        """Load the newest sound checkpoint, of any number of ranks; None where there is none.

        Raises:
            UserError: there are checkpoints, and none is sound.
        """
        chosen = self._ranks.all_agree(lambda: self._newest_sound() if self._ranks.rank == 0 else None)
        name = self._ranks.from_first(None if chosen is None else chosen[0])
        if name is None:
            return None
        folder = self._folder / name
        for table, part in _tables(embeddings):
            self._ranks.all_agree(lambda table=table, part=part: table.load(folder, part))  # type: ignore[misc]
        progress: Progress = self._ranks.from_first(chosen[1] if chosen else None)
        return progress

    def _newest_sound(self) -> tuple[str, Progress] | None:
        found = self._committed()
        for folder in found:
            try:
                return folder.name, _read_manifest(folder)
            except UserError as error:
                log.warning(f"checkpoint passed over: {error}")
        if found:
            raise UserError(f"--work: {self._folder}: no checkpoint is sound; remove the folder to begin anew")
        return None

    def _committed(self) -> list[Path]:
        found = [path for path in self._folder.iterdir() if re.fullmatch(r"step-\d{10}", path.name)]
        return sorted((path for path in found if (path / _MANIFEST).is_file()), reverse=True)

    def save(self, embeddings: Embeddings, progress: Progress) -> None:
        """Write and commit a checkpoint, and remove all but the newest two.

        Raises:
            UserError: it cannot be written; earlier ones stay.
        """
        name = f"step-{progress.step:010d}"
        partial, first = self._folder / f".{name}.partial", self._ranks.rank == 0
        self._ranks.all_agree(lambda: _make_empty(partial) if first else None)
        digests = self._ranks.all_agree(lambda: _write_shards(embeddings, partial))
        faults.reach("save-written")
        files = {path: digest for of_rank in self._ranks.gather(digests) for path, digest in of_rank.items()}
        self._ranks.all_agree(lambda: self._commit(partial, name, progress, files) if first else None)

    def _commit(self, partial: Path, name: str, progress: Progress, files: dict[str, list[Any]]) -> None:
        content = json.loads(json.dumps({"progress": asdict(progress), "files": files}))
        write_atomically(partial / _MANIFEST, json.dumps(content | {"sha256": _hash_of(content)}, indent=1) + "\n")
        faults.reach("commit-before-rename")
        final = self._folder / name
        shutil.rmtree(final, ignore_errors=True)  # a damaged one, that was passed over
        partial.rename(final)
        fsync_path(self._folder)
        faults.reach("commit-before-prune")
        for old in [*self._committed()[_KEPT:], *self._folder.glob(".step-*.partial")]:
            shutil.rmtree(old, ignore_errors=True)

    def remove(self) -> None:
        """Delete the folder: the result is written."""
        if self._ranks.rank == 0:
            shutil.rmtree(self._folder, ignore_errors=True)


def _tables(embeddings: Embeddings) -> Sequence[tuple[Any, str]]:
    return (embeddings.table, "vectors"), (embeddings.sums, "squares")


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _write_shards(embeddings: Embeddings, folder: Path) -> dict[str, list[Any]]:
    digests = {}
    for table, part in _tables(embeddings):
        try:
            path = table.save(folder, part)
            fsync_path(path)
        except OSError as error:
            raise UserError.because(f"--work: {folder}: a checkpoint cannot be written ({error})", error) from None
        digests[path.name] = [path.stat().st_size, sha256_of(path)]
    return digests


def _hash_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def _read_manifest(folder: Path) -> Progress:
    """Read a checkpoint's manifest and check all of its files; raises `UserError` if something is wrong with one."""
    content = read_json(folder / _MANIFEST)
    if not isinstance(content, dict) or content.pop("sha256", None) != _hash_of(content):
        raise UserError(f"{folder / _MANIFEST}: changed since it was written")
    for name, (size, digest) in content["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size or sha256_of(path) != digest:
            raise UserError(f"{path}: missing, or its content does not match the checkpoint's manifest")
    return Progress(**content["progress"])
