"""Write checkpoints while training goes on, and commit them atomically.

A save passes through these states on disk; a kill at any point leaves the previous checkpoint as it was:

1. `.step-N.partial/`: every rank writes and fsyncs its files there, on a thread, while the next step computes. From a
   GPU they are copied on a stream of their own, through pinned memory.
2. `.step-N.partial/manifest.json`: once all ranks have succeeded, rank 0 records the size and hash of every file.
3. `step-N/`: the rename commits the checkpoint. Readers accept only folders of this name that hold a manifest.
4. `latest.json` names it, and old checkpoints are removed.

A save that fails costs a warning and its partial folder; training goes on.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trelm_ds import faults, log
from trelm_ds.checkpoints.manifest import CheckpointInfo, versions
from trelm_ds.checkpoints.pending_save import Captured, FileDigests, PendingSave, fsync_and_hash, one_line, tensors_of
from trelm_ds.config import TrainerConfig
from trelm_ds.engine import clear_padding
from trelm_ds.files import fsync_path, write_atomically
from trelm_ds.run_folder import MANIFEST, POINTER, checkpoints_folder, committed, named_folders, step_of
from trelm_ds.streams import side_stream

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from trelm_ds.distributed import Ranks

_FREE_SPACE_FACTOR = 1.05  # times the checkpoint's size that must be free before a save begins


class Saveable(Protocol):
    """A part of the run with files of its own in each checkpoint."""

    def capture(self) -> Captured | None:
        """Describe the state to save, without copying it: it stays as it is until `Saver.settle`."""
        ...


class Saver:
    """Saves the checkpoints of one run; every method except `abandon` is collective.

    A save does not copy the weights: a thread writes them while the next step computes its gradients. So call `settle`
    before changing anything that belongs to a checkpoint, above all before the optimizer step.

    Args:
        tokenizer: folder copied into each checkpoint, so that a checkpoint can be exported by itself.
        settings: how many checkpoints to keep, and whether to write them asynchronously.
        parts: further state to save beside the engine's.

    Attributes:
        pause_s: seconds that training has waited for saves; the caller resets it.
        failed: why the last save failed; None where it succeeded.
    """

    def __init__(
        self,
        engine: DeepSpeedEngine,
        run: Path,
        tokenizer: Path,
        settings: TrainerConfig,
        ranks: Ranks,
        parts: Sequence[Saveable] = (),
    ) -> None:
        self._engine, self._folder, self._tokenizer = engine, checkpoints_folder(run), tokenizer
        self._run, self._settings, self._ranks, self._parts = run, settings, ranks, parts
        self._side = side_stream(ranks.device)
        self._pending: PendingSave | None = None
        self.pause_s = 0.0
        self.failed: str | None = None

    def begin(self, info: CheckpointInfo) -> None:
        """Start a save; call between two steps.

        Args:
            info: the manifest, without `files` and `versions`.
        """
        self.settle()
        started = time.monotonic()
        partial = self._folder / f".{_folder_name(info.step)}.partial"
        files = _engine_state(self._engine, partial)
        parts = [captured for part in self._parts if (captured := part.capture()) is not None]
        size = sum(map(_tensor_bytes, files.values())) + sum(part.size for part in parts)
        if problem := self._first_problem(lambda: self._prepare(partial, size)):
            self._discard(partial, info.step, problem)
        else:
            faults.reach("save-started")
            self._pending = PendingSave(partial, info, files, parts, self._side)
        self.pause_s += time.monotonic() - started
        if not self._settings.async_checkpoints:
            self.settle()

    def settle(self) -> None:
        """Finish the pending save, if any: wait for the writers of all ranks and commit."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        started = time.monotonic()
        digests, problem = pending.wait()
        if self._side is not None:  # a thread that failed may have left a copy under way
            self._side.main_waits(self._side.side_reached())
        digests_by_rank, problems = zip(*self._ranks.gather((digests, problem)), strict=True)
        problem = next(filter(None, problems), None)
        if problem is None:  # the same on all ranks, so all of them take the same branch
            merged: FileDigests = {name: digest for digests in digests_by_rank for name, digest in digests.items()}
            problem = self._first_problem(lambda: self._commit(pending.folder, pending.info, merged))
        if problem is None:
            self.failed = None
        else:
            self._discard(pending.folder, pending.info.step, problem)
        self.pause_s += time.monotonic() - started

    def abandon(self) -> None:
        """Wait for this rank's writer and leave its files uncommitted, because this rank or another has failed."""
        if self._pending is not None:
            self._pending.wait()

    def _prepare(self, partial: Path, size: int) -> None:
        """Make the partial folder on rank 0, after checking for free disk space; collective.

        Args:
            partial: the folder to make.
            size: bytes that this rank will write.

        Raises:
            OSError: the disk is too full, or the folder cannot be written.
        """
        total = sum(self._ranks.gather(size))
        if self._ranks.rank:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        # Leftovers of killed saves, and of killed removals: `_remove` deletes the manifest first.
        half_removed = [path for path in named_folders(self._run) if not (path / MANIFEST).is_file()]
        for leftover in (*self._folder.glob(".step-*.partial"), *half_removed):
            shutil.rmtree(leftover, ignore_errors=True)
        free = shutil.disk_usage(self._folder).free
        if free < _FREE_SPACE_FACTOR * total:
            raise OSError(f"it takes {total / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free")
        shutil.copytree(self._tokenizer, partial / "tokenizer")

    def _commit(self, partial: Path, info: CheckpointInfo, digests: FileDigests) -> None:
        """Turn the partial folder, complete on all ranks, into a committed checkpoint; only rank 0 acts.

        Args:
            partial: holds the fsynced files of every rank.
            info: the manifest; `files` and `versions` are filled here.
            digests: of the files that the ranks wrote.
        """
        if self._ranks.rank:
            return
        # The ranks hashed and fsynced their own files while writing them. The rest, the tokenizer, is done here, so
        # that everything the manifest lists is on disk before the manifest is.
        rest = [path for path in partial.rglob("*") if path.is_file() and str(path.relative_to(partial)) not in digests]
        info.files = dict(sorted((digests | fsync_and_hash(partial, rest)).items()))
        info.versions = versions()
        faults.reach("commit-before-manifest")
        # The manifest, atomic and fsynced, comes before the rename: a folder with a checkpoint's name that has one is
        # complete. A kill before the rename leaves a hidden folder, which the next save deletes.
        write_atomically(partial / MANIFEST, info.to_json())
        final = self._folder / _folder_name(info.step)
        if final.exists():  # a damaged one, or one from before the run went back to an earlier step
            _remove(final)
        faults.reach("commit-before-rename")
        # The commit itself. Without the fsync a power cut could undo the rename after `latest.json` has been written.
        partial.rename(final)
        fsync_path(self._folder)
        faults.reach("commit-before-pointer")
        # Only now may `latest.json` name it. A kill before this line costs no more than time: the next start continues
        # from the checkpoint that the pointer still names and repeats the steps since, with the same result.
        write_atomically(self._folder / POINTER, json.dumps({"checkpoint": final.name, "step": info.step}) + "\n")
        faults.reach("commit-before-prune")
        # Old checkpoints go last, when the new one can stand in for them.
        try:
            # Checkpoints of later steps were passed over as damaged when the run started from an earlier one. If they
            # stayed, `prune` would count them among the newest and remove sound ones instead.
            for path in committed(self._run):
                if step_of(path) > info.step:
                    _remove(path)
            prune(self._run, self._settings.keep_checkpoints, self._settings.keep_every)
        except OSError as error:  # the new checkpoint is committed all the same
            log.warning_once(f"{self._folder}: old checkpoints not removed: {one_line(error)}")

    def _first_problem(self, call: Callable[[], None]) -> str | None:
        """Run `call` on every rank and return, on all of them, what failed on the first rank where it failed."""
        problem = None
        try:
            call()
        except (OSError, shutil.Error) as error:
            problem = one_line(error)
        return next(filter(None, self._ranks.gather(problem)), None)

    def _discard(self, partial: Path, step: int, problem: str) -> None:
        """Record that a save has failed and delete its partial folder."""
        self.failed = f"{self._folder}: checkpoint at step {step} not committed: {problem}"
        if self._ranks.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            log.warning(f"{self.failed}; training goes on, earlier checkpoints are untouched")
        self._ranks.barrier()  # no rank may begin the next save while rank 0 still deletes


def _engine_state(engine: DeepSpeedEngine, folder: Path) -> dict[Path, Any]:
    """Collect what DeepSpeed would write on this rank, by file; collective.

    The tensors are the live ones, not copies.
    """
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    files: dict[Path, Any] = {}

    class Capturing(TorchCheckpointEngine):
        """Keeps what it is told to save. It writes nothing, so no rank can fail between DeepSpeed's barriers."""

        def save(self, state_dict: Any, path: str) -> None:
            files[Path(path)] = state_dict

        def makedirs(self, path: str, exist_ok: bool = False) -> None:
            pass

    checkpoint_engine, copy_script = engine.checkpoint_engine, engine._copy_recovery_script
    engine.checkpoint_engine = Capturing()
    engine._copy_recovery_script = lambda folder: None  # DeepSpeed's zero_to_fp32.py; we have `trelm export`
    try:
        clear_padding(engine)
        engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)
    finally:
        engine.checkpoint_engine, engine._copy_recovery_script = checkpoint_engine, copy_script
    return files


def prune(run: Path, keep: int, keep_every: int | None, damaged: Collection[Path] = ()) -> list[Path]:
    """Remove old checkpoints and return their paths. Links, to an archive perhaps, are left alone and named.

    Args:
        run: the run folder.
        keep: how many of the newest to keep.
        keep_every: also keep those at multiples of this step.
        damaged: checkpoints to remove in any case, which do not count towards `keep`.
    """
    sound = [path for path in committed(run) if path not in damaged]
    old = [path for path in sound[keep:] if not keep_every or step_of(path) % keep_every]
    old += [path for path in committed(run) if path in damaged]
    removed = [path for path in old if not path.is_symlink()]
    for path in removed:
        _remove(path)
    for path in set(old) - set(removed):
        log.info_once(f"{path}: is a link, so the checkpoint is not removed")
    return removed


def _folder_name(step: int) -> str:
    return f"step-{step:08d}"


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint, its manifest first: a removal killed half-way leaves nothing that looks committed."""
    (checkpoint / MANIFEST).unlink(missing_ok=True)
    fsync_path(checkpoint)
    faults.reach("prune-mid")
    shutil.rmtree(checkpoint)


def _tensor_bytes(state: Any) -> int:
    """Sum the bytes of all tensors in nested containers, counting each storage once."""
    storages = (tensor.untyped_storage() for tensor in tensors_of(state))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
