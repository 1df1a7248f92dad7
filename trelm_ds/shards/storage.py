"""Where a dataset's files lie: in a folder, or behind an fsspec URL with a cache of its own on this machine."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any, Protocol

from trelm_ds.errors import UserError
from trelm_ds.files import fsync_folder, sha256_of, waiting_lock
from trelm_ds.shards.manifest import NAME, Manifest


class Storage(Protocol):
    """A dataset's files as local paths.

    Attributes:
        folder: holds everything but, perhaps, the shards.
        place: the folder or URL as the user knows it, for messages.
    """

    folder: Path
    place: str

    def shard(self, name: str) -> Path:
        """The local path of a shard.

        Raises:
            OSError: it cannot be fetched, or is not what the manifest says.
        """

    def distrust(self, name: str) -> None:
        """Tells that the shard's local copy has turned out damaged."""


class LocalFolder:
    """A dataset in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, str(folder)

    def shard(self, name: str) -> Path:
        return self.folder / name

    def distrust(self, name: str) -> None:
        """Nothing to do: there is no other copy."""


class RemoteFolder:
    """A dataset behind an fsspec URL. All but the shards is fetched at once, a shard when it is first read.

    The cache is one folder for all datasets, with a folder for each by its fingerprint. Files appear there whole and
    with the manifest's sha256 or not at all; ranks and workers of a machine take turns by `flock`.

    Args:
        url: such as `s3://bucket/dataset`.
        cache: folder of the cache.
        cache_bytes: the shards least recently read are removed beyond this.

    Raises:
        UserError: no dataset there, or it cannot be read; the file system's package is not installed.
    """

    def __init__(self, url: str, cache: Path, cache_bytes: int) -> None:
        self.place, self._cache, self._cache_bytes = url.rstrip("/"), cache, cache_bytes
        self._remote: tuple[Any, str] | None = None
        try:
            cache.mkdir(parents=True, exist_ok=True)
            manifest = self._fetch_manifest()
            self.folder = cache / manifest.fingerprint[:32]
            self._about = {name: (about["bytes"], about["sha256"]) for name, about in manifest.files.items()}
            self._about |= {shard.name: (shard.bytes, shard.sha256) for shard in manifest.shards}
            for name in manifest.files:
                self._fetch(name)
        except OSError as error:
            raise UserError(f"--data: cannot read {self.place}: {_reason(error)}") from None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_remote": None}  # a connection does not travel to another process

    def shard(self, name: str) -> Path:
        path = self._fetch(name)
        with contextlib.suppress(OSError):
            os.utime(path)  # read just now: last in line for removal
        return path

    def distrust(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def _fetch_manifest(self) -> Manifest:
        with tempfile.TemporaryDirectory(dir=self._cache, prefix=".manifest-") as temporary:
            work = Path(temporary)
            try:
                self._download(NAME, work / NAME)
            except FileNotFoundError:
                raise UserError(f"--data: {self.place} is no dataset: it has no {NAME}") from None
            try:
                manifest = Manifest.load(work)
            except UserError as error:
                raise UserError(f"--data: {str(error).replace(str(work), self.place)}") from None
            folder = self._cache / manifest.fingerprint[:32]
            folder.mkdir(exist_ok=True)
            (work / NAME).replace(folder / NAME)
        return manifest

    def _fetch(self, name: str) -> Path:
        """The local path of a file of the dataset, fetched where it is not there yet."""
        path = self.folder / name
        size, sha256 = self._about[name]
        if path.is_file() and path.stat().st_size == size:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with waiting_lock(path.with_name(f".{path.name}.lock")):
            if path.is_file() and path.stat().st_size == size:
                return path  # somebody else was faster
            temporary = path.with_name(f".{path.name}.tmp")
            self._download(name, temporary)
            if temporary.stat().st_size != size or sha256_of(temporary) != sha256:
                temporary.unlink()
                raise OSError(f"{self.place}/{name}: its content does not match the manifest")
            temporary.replace(path)
            fsync_folder(path.parent)
        if name.endswith(".tar"):
            self._make_room(path)
        return path

    def _download(self, name: str, target: Path) -> None:
        fs, root = self._connect()
        try:
            fs.get_file(f"{root}/{name}", str(target))
        except OSError:
            raise
        except Exception as error:  # backends raise what their libraries raise
            raise OSError(f"{type(error).__name__}: {_reason(error)}") from error

    def _connect(self) -> tuple[Any, str]:
        if self._remote is None:
            import fsspec

            try:
                self._remote = fsspec.core.url_to_fs(self.place)
            except (ImportError, ValueError) as error:
                raise UserError(f"--data: cannot open {self.place}: {_reason(error)}") from None
        return self._remote

    def _make_room(self, keep: Path) -> None:
        """Removes the shards least recently read until the cache is small enough."""
        with waiting_lock(self._cache / ".lock"):
            found = []
            for path in self._cache.glob("*/shard-*.tar"):
                with contextlib.suppress(FileNotFoundError):
                    found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
            total = sum(size for _, size, _ in found)
            for _, size, path in sorted(found):
                if total <= self._cache_bytes:
                    break
                if path != keep:
                    path.unlink(missing_ok=True)
                    total -= size


def open_storage(location: str, cache: Path, cache_gb: float) -> LocalFolder | RemoteFolder:
    """The dataset at a folder's path or an fsspec URL.

    Raises:
        UserError: a URL that cannot be read.
    """
    if "://" not in location:
        return LocalFolder(Path(location))
    return RemoteFolder(location, cache.expanduser(), int(cache_gb * 1e9))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
