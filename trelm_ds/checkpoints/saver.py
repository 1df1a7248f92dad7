"""Writes checkpoints beside training and commits them (DESIGN 6).

All ranks write into a hidden folder and flush it; rank 0 describes it by a manifest, renames it, and only then names it
by our own pointer `latest.json`. A kill at any point leaves the last committed checkpoint as it was, and a save that
fails costs a warning, nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from trelm_ds import faults, log
from trelm_ds.checkpoints.manifest import CheckpointInfo, versions
from trelm_ds.config import TrainerConfig
from trelm_ds.engine import clear_padding
from trelm_ds.files import fsync_folder, sha256_of, write_atomically
from trelm_ds.run_folder import MANIFEST, POINTER, checkpoints_folder, committed, named_folders, step_of

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from trelm_ds.distributed import Ranks

Sums = dict[str, list[Any]]  # path within the checkpoint -> [bytes, sha256]
_ROOM = 1.05  # of what a checkpoint takes, that must be free


class Captured(NamedTuple):
    """A part's state as it is now.

    Attributes:
        size: bytes that this rank will write.
        write: writes them into a checkpoint's folder and returns the files' paths. It is called on another thread,
            while the next step's forward and backward passes run.
    """

    size: int
    write: Callable[[Path], Iterable[Path]]


class Saved(Protocol):
    """A part of a run that has files of its own in a checkpoint."""

    def capture(self) -> Captured | None: ...


class Saver:
    """Saves one run. Every method is collective, but `abandon`.

    A save holds no copy of the weights: a thread writes them while the next step computes gradients, and `settle` must
    be called before anything that is in a checkpoint changes.

    Args:
        engine: DeepSpeed's.
        run: the run folder.
        tokenizer: folder that is copied into each checkpoint, so that it can be exported by itself.
        settings: how many checkpoints stay, and whether to write beside training.
        ranks: of the run.
        parts: what else is in a checkpoint.

    Attributes:
        pause_s: for how long training has waited for saves since it was last set to 0.
        failed: the last save's reason, where it failed.
    """

    def __init__(
        self,
        engine: DeepSpeedEngine,
        run: Path,
        tokenizer: Path,
        settings: TrainerConfig,
        ranks: Ranks,
        parts: Sequence[Saved] = (),
    ) -> None:
        self._engine, self._folder, self._tokenizer = engine, checkpoints_folder(run), tokenizer
        self._run, self._settings, self._ranks, self._parts = run, settings, ranks, parts
        self._writing: _Writing | None = None
        self.pause_s = 0.0
        self.failed: str | None = None

    def begin(self, info: CheckpointInfo) -> None:
        """Starts a save; between two steps.

        Args:
            info: of it, without files and versions.
        """
        self.settle()
        begun = time.monotonic()
        work = self._folder / f".{_name(info.step)}.partial"
        files = _states(self._engine, work)
        parts = [captured for part in self._parts if (captured := part.capture()) is not None]
        size = sum(map(_size, files.values())) + sum(part.size for part in parts)
        if problem := self._first_problem(lambda: self._prepare(work, size)):
            self._give_up(work, info.step, problem)
        else:
            faults.reach("save-started")
            self._writing = _Writing(work, info, files, parts, self._ranks.device)
        self.pause_s += time.monotonic() - begun
        if not self._settings.async_checkpoints:
            self.settle()

    def settle(self) -> None:
        """Ends the save that is under way: waits for the writers, commits."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        begun = time.monotonic()
        sums, problem = writing.wait()
        everyones, problems = zip(*self._ranks.gather((sums, problem)), strict=True)
        problem = next(filter(None, problems), None)
        if problem is None:
            merged: Sums = {name: about for one in everyones for name, about in one.items()}
            problem = self._first_problem(lambda: self._commit(writing.folder, writing.info, merged))
        if problem is None:
            self.failed = None
        else:
            self._give_up(writing.folder, writing.info.step, problem)
        self.pause_s += time.monotonic() - begun

    def abandon(self) -> None:
        """Lets the writer end and leaves what it wrote uncommitted: this rank, or another, has failed."""
        if self._writing is not None:
            self._writing.wait()

    def _prepare(self, work: Path, size: int) -> None:
        """Rank 0 makes the folder; `size`: bytes this rank will write."""
        total = sum(self._ranks.gather(size))
        if self._ranks.rank:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        removed = [path for path in named_folders(self._run) if not (path / MANIFEST).is_file()]
        for left in (*self._folder.glob(".step-*.partial"), *removed):  # of a save or a removal that was killed
            shutil.rmtree(left, ignore_errors=True)
        free = shutil.disk_usage(self._folder).free
        if free < _ROOM * total:
            raise OSError(f"it takes {total / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free")
        shutil.copytree(self._tokenizer, work / "tokenizer")

    def _commit(self, work: Path, info: CheckpointInfo, sums: Sums) -> None:
        if self._ranks.rank:
            return
        rest = [path for path in work.rglob("*") if path.is_file() and str(path.relative_to(work)) not in sums]
        info.files = dict(sorted((sums | _sums(work, rest)).items()))
        info.versions = versions()
        faults.reach("commit-before-manifest")
        write_atomically(work / MANIFEST, info.to_json())
        final = self._folder / _name(info.step)
        if final.exists():  # damaged, or of a continuation from an earlier step: this one replaces it
            _remove(final)
        faults.reach("commit-before-rename")
        work.rename(final)
        fsync_folder(self._folder)
        faults.reach("commit-before-pointer")
        write_atomically(self._folder / POINTER, json.dumps({"checkpoint": final.name, "step": info.step}) + "\n")
        faults.reach("commit-before-prune")
        try:
            # Newer ones were passed over as damaged; kept, they would count instead of sound ones.
            for path in committed(self._run):
                if step_of(path) > info.step:
                    _remove(path)
            prune(self._run, self._settings.keep_checkpoints, self._settings.keep_every)
        except OSError as error:  # the new one is committed all the same
            log.warning_once(f"{self._folder}: old checkpoints not removed: {_reason(error)}")

    def _first_problem(self, call: Callable[[], None]) -> str | None:
        """Calls it on every rank; what went wrong on the first rank where something did, the same on all."""
        problem = None
        try:
            call()
        except (OSError, shutil.Error) as error:
            problem = _reason(error)
        return next(filter(None, self._ranks.gather(problem)), None)

    def _give_up(self, work: Path, step: int, problem: str) -> None:
        self.failed = f"{self._folder}: checkpoint at step {step} not committed: {problem}"
        if self._ranks.rank == 0:
            shutil.rmtree(work, ignore_errors=True)
            log.warning(f"{self.failed}; training goes on, earlier checkpoints are untouched")
        self._ranks.barrier()  # the folder is gone before anybody begins the next


class _Writing:
    """A save's files of this rank, on their way to disk."""

    def __init__(
        self, folder: Path, info: CheckpointInfo, files: dict[Path, Any], parts: list[Captured], device: torch.device
    ) -> None:
        self.folder, self.info = folder, info
        self._files, self._parts, self._device = files, parts, device
        self._sums: Sums = {}
        self._problem: str | None = None
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the writer reads on a stream of its own
        self._thread = Thread(target=self._write, name="checkpoint", daemon=True)
        self._thread.start()

    def _write(self) -> None:
        try:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
            self.folder.mkdir(parents=True, exist_ok=True)  # which another node may not see yet
            for path, state in self._files.items():
                if not all(bool(torch.isfinite(tensor).all()) for tensor in _tensors(state)):
                    raise ValueError(
                        f"{path.name}: weights or moments are not finite; another run needs a lower optimizer.lr"
                    )
                with path.open("wb") as stream:
                    hashed = _Hashed(stream)
                    torch.save(state, hashed)  # type: ignore[arg-type]  # it needs write and flush, no more
                    stream.flush()
                    os.fsync(stream.fileno())
                self._sums[path.name] = [hashed.size, hashed.hexdigest()]
            faults.reach("save-between-files")
            for part in self._parts:
                self._sums |= _sums(self.folder, part.write(self.folder))
            fsync_folder(self.folder)
            faults.reach("save-written")
        except Exception as error:  # whatever it is, training goes on
            self._problem = _reason(error)
        self._files, self._parts = {}, []

    def wait(self) -> tuple[Sums, str | None]:
        """Sums of the files that were written, and what went wrong."""
        self._thread.join()
        return self._sums, self._problem


class _Hashed:
    """A stream that knows size and sha256 of what it was given, so that nothing is read again."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._hash, self.size = stream, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self.size += len(data)
        faults.reach("save-mid-file")
        return self._stream.write(data)

    def flush(self) -> None:
        self._stream.flush()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _states(engine: DeepSpeedEngine, work: Path) -> dict[Path, Any]:
    """What DeepSpeed would write on this rank, by file; collective."""
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    files: dict[Path, Any] = {}

    class Capturing(TorchCheckpointEngine):
        """Notes what is to be saved. Nothing is written here, so nothing can fail between DeepSpeed's barriers."""

        def save(self, state_dict: Any, path: str) -> None:
            files[Path(path)] = state_dict

        def makedirs(self, path: str, exist_ok: bool = False) -> None:
            pass

    own, copy_script = engine.checkpoint_engine, engine._copy_recovery_script
    engine.checkpoint_engine = Capturing()
    engine._copy_recovery_script = lambda folder: None  # of DeepSpeed's; `trelm export` does it
    try:
        clear_padding(engine)
        engine.save_checkpoint(str(work.parent), tag=work.name, save_latest=False)
    finally:
        engine.checkpoint_engine, engine._copy_recovery_script = own, copy_script
    return files


def prune(run: Path, keep: int, keep_every: int | None, damaged: Collection[Path] = ()) -> list[Path]:
    """Removes old checkpoints; returns which.

    Args:
        run: the run folder.
        keep: how many of the newest stay.
        keep_every: those at multiples of this step stay as well.
        damaged: known to be; they go, and do not count.
    """
    sound = [path for path in committed(run) if path not in damaged]
    old = [path for path in sound[keep:] if not keep_every or step_of(path) % keep_every]
    old += [path for path in committed(run) if path in damaged]
    for path in old:
        _remove(path)
    return old


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _remove(checkpoint: Path) -> None:
    (checkpoint / MANIFEST).unlink(missing_ok=True)  # from here on it does not exist, whatever happens to the rest
    fsync_folder(checkpoint)
    faults.reach("prune-mid")
    shutil.rmtree(checkpoint)


def _sums(folder: Path, files: Iterable[Path]) -> Sums:
    """Of files that are on disk from here on."""
    found: Sums = {}
    folders = {folder}
    for path in files:
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        found[str(path.relative_to(folder))] = [path.stat().st_size, sha256_of(path)]
        folders.update(parent for parent in path.parents if folder in parent.parents)
    for one in folders:
        fsync_folder(one)
    return found


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested containers."""
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for item in state.values() if isinstance(state, dict) else state:
            yield from _tensors(item)


def _size(state: Any) -> int:
    """Bytes of all tensors in it, each storage once."""
    storages = (tensor.untyped_storage() for tensor in _tensors(state))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
