"""One rank's files of a checkpoint, written by a thread beside training."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from threading import Thread
from types import MappingProxyType
from typing import IO, Any, NamedTuple

import torch
from torch.utils.serialization import config as torch_save

from trelm_ds import faults
from trelm_ds.checkpoints.manifest import CheckpointInfo
from trelm_ds.files import fsync_path, sha256_of
from trelm_ds.streams import SideStream

FileDigests = dict[str, list[Any]]  # path within the checkpoint -> [bytes, sha256]
_MOST_PINNED = 1 << 30  # bytes of the largest tensor that is copied through pinned memory, which torch keeps
_PIECE = 1 << 24  # elements that are checked at once, because what that takes is memory of the GPU


class Captured(NamedTuple):
    """The state of one part of the run at the time of a save.

    Attributes:
        size: bytes that this rank will write.
        write: writes them into the checkpoint's folder and returns the paths of the files. Called on the writer
            thread, while the next step's forward and backward passes run.
        weights: what of it is weights or moments, by the name to give it where it is not finite.
    """

    size: int
    write: Callable[[Path], Iterable[Path]]
    weights: Mapping[str, torch.Tensor] = MappingProxyType({})


class PendingSave:
    """This rank's files of one save, being written by a thread."""

    def __init__(
        self, folder: Path, info: CheckpointInfo, files: dict[Path, Any], parts: list[Captured], side: SideStream | None
    ) -> None:
        self.folder, self.info = folder, info
        self._files, self._parts, self._side = files, parts, side
        self._begun = None if side is None else side.main_reached()  # here the step has written all that is captured
        self._digests: FileDigests = {}
        self._problem: str | None = None
        self._thread = Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._beside_training():
                self._write()
        except Exception as error:  # whatever failed, training goes on
            self._problem = one_line(error)
        self._files, self._parts = {}, []  # free the captured state

    @contextlib.contextmanager
    def _beside_training(self) -> Iterator[None]:
        """Put this thread's copies from a GPU on the side stream, behind the step that is saved, not behind later ones.

        In a thread the current stream would be the device's default one: each copy would wait for the passes of the
        next step, and its passes for the copies.
        """
        if self._side is None or self._begun is None:
            yield
            return
        self._begun.synchronize()  # for what is captured on the host; training's thread goes on
        with self._side.use():
            self._side.side_waits(self._begun)
            yield

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)  # another node may not see rank 0's folder yet
        for path, state in self._files.items():
            _check_finite(path.name, state)
            with path.open("wb") as stream, self._pinned(state):
                hashing = _HashingStream(stream)
                try:
                    torch.save(state, hashing)  # type: ignore[arg-type]  # it calls write and flush only
                except RuntimeError as error:
                    raise hashing.failed or error from None
                stream.flush()
                os.fsync(stream.fileno())
            self._digests[path.name] = [hashing.size, hashing.hexdigest()]
        faults.reach("save-between-files")
        for part in self._parts:
            for name, weights in part.weights.items():
                _check_finite(name, weights)
            self._digests |= fsync_and_hash(self.folder, part.write(self.folder))
        fsync_path(self.folder)  # the files' names, after their contents
        faults.reach("save-written")

    @contextlib.contextmanager
    def _pinned(self, state: Any) -> Iterator[None]:
        """Have torch copy through pinned memory; it takes one tensor at a time, and keeps the memory for the next."""
        largest = max((tensor.untyped_storage().nbytes() for tensor in tensors_of(state)), default=0)
        pinned = self._side is not None and largest <= _MOST_PINNED
        with torch_save.patch({"save.use_pinned_memory_for_d2h": pinned}):  # type: ignore[attr-defined]  # in this thread
            yield

    def wait(self) -> tuple[FileDigests, str | None]:
        """Wait for the thread; return the digests of the files it wrote, and what went wrong."""
        self._thread.join()
        return self._digests, self._problem


class _HashingStream:
    """A stream that hashes and counts the bytes written through it, so that files need not be read again."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._hash, self.size = stream, hashlib.sha256(), 0
        self.failed: OSError | None = None  # the writer's own error says nothing of a full disk or a file too large

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self.size += len(data)
        faults.reach("save-mid-file")
        try:
            return self._stream.write(data)
        except OSError as error:
            self.failed = error
            raise

    def flush(self) -> None:
        self._stream.flush()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _check_finite(name: str, state: Any) -> None:
    if not all(map(_is_finite, tensors_of(state))):
        raise ValueError(f"{name}: weights or moments are not finite; another run needs a lower optimizer.lr")


def _is_finite(tensor: torch.Tensor) -> bool:
    return all(bool(torch.isfinite(piece).all()) for piece in tensor.detach().reshape(-1).split(_PIECE))


def fsync_and_hash(folder: Path, files: Iterable[Path]) -> FileDigests:
    """Fsync files below `folder` and the folders they are in; return their sizes and hashes."""
    digests: FileDigests = {}
    folders = {folder}
    for path in files:
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        digests[str(path.relative_to(folder))] = [path.stat().st_size, sha256_of(path)]
        folders.update(parent for parent in path.parents if folder in parent.parents)
    for each in folders:
        fsync_path(each)
    return digests


def tensors_of(state: Any) -> Iterator[torch.Tensor]:
    """Yield all tensors in nested containers."""
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for item in state.values() if isinstance(state, dict) else state:
            yield from tensors_of(item)


def one_line(error: Exception) -> str:
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list) and error.args[0]:
        error = OSError(error.args[0][0][-1])  # of (from, to, reason) for each file
    return " ".join(str(error).split())[:200] or type(error).__name__
