"""Storage of a dataset's files: a local folder, or an fsspec URL with a cache on this machine."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any, Protocol

from trelm_ds.errors import UserError
from trelm_ds.files import fsync_path, sha256_of, waiting_lock
from trelm_ds.shards.manifest import MANIFEST, Manifest


class Storage(Protocol):
    """A dataset's files as local paths.

    Attributes:
        folder: local folder with all files, possibly without the shards.
        place: the folder or URL as the user gave it, for messages.
    """

    folder: Path
    place: str

    def shard(self, name: str) -> Path:
        """Return the local path of a shard, fetching it if necessary.

        Raises:
            OSError: the shard cannot be fetched, or does not match the manifest.
        """

    def discard(self, name: str) -> None:
        """Discard the local copy of a shard, which turned out to be damaged."""


class LocalFolder:
    """A dataset in a local folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, str(folder)

    def shard(self, name: str) -> Path:
        """Return the path of a shard; it is not checked."""
        return self.folder / name

    def discard(self, name: str) -> None:
        """Do nothing: there is no other copy."""


class RemoteFolder:
    """A dataset at an fsspec URL. Shards are fetched when first read, all other files at once.

    The cache folder is shared by all datasets, with a subfolder for each, named by fingerprint. Files appear in it only
    when complete and with the manifest's sha256. Ranks and workers on a machine take turns by `flock`.

    Args:
        url: such as `s3://bucket/dataset`.
        cache: folder of the cache.
        cache_bytes: size limit, beyond which the least recently read shards are removed.

    Raises:
        UserError: there is no dataset, it cannot be read, or the file system's package is not installed.
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
        return self.__dict__ | {"_remote": None}  # connections cannot be pickled

    def shard(self, name: str) -> Path:
        """Return the local path of a shard, fetching it if necessary."""
        path = self._fetch(name)
        with contextlib.suppress(OSError):
            os.utime(path)  # marks it as recently read, see `_make_room`
        return path

    def discard(self, name: str) -> None:
        """Remove a shard from the cache."""
        (self.folder / name).unlink(missing_ok=True)

    def _fetch_manifest(self) -> Manifest:
        """Fetch and check the manifest, and put it into the dataset's folder in the cache."""
        with tempfile.TemporaryDirectory(dir=self._cache, prefix=".manifest-") as temporary:
            work = Path(temporary)
            try:
                self._download(MANIFEST, work / MANIFEST)
            except FileNotFoundError:
                raise UserError(f"--data: {self.place} is no dataset: it has no {MANIFEST}") from None
            try:
                manifest = Manifest.load(work)
            except UserError as error:
                raise UserError(f"--data: {str(error).replace(str(work), self.place)}") from None
            folder = self._cache / manifest.fingerprint[:32]
            folder.mkdir(exist_ok=True)
            (work / MANIFEST).replace(folder / MANIFEST)
        return manifest

    def _fetch(self, name: str) -> Path:
        """Return the local path of a file, fetching it if it is not in the cache."""
        path = self.folder / name
        size, sha256 = self._about[name]
        if path.is_file() and path.stat().st_size == size:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with waiting_lock(path.with_name(f".{path.name}.lock")):
            if path.is_file() and path.stat().st_size == size:
                return path  # another process was faster
            temporary = path.with_name(f".{path.name}.tmp")
            self._download(name, temporary)
            if temporary.stat().st_size != size or sha256_of(temporary) != sha256:
                temporary.unlink()
                raise OSError(f"{self.place}/{name}: its content does not match the manifest")
            temporary.replace(path)
            fsync_path(path.parent)
        if name.endswith(".tar"):
            self._make_room(path)
        return path

    def _download(self, name: str, target: Path) -> None:
        fs, root = self._connect()
        try:
            fs.get_file(f"{root}/{name}", str(target))
        except OSError:
            raise
        except Exception as error:  # backends let exceptions of their libraries through
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
        """Remove the least recently read shards until the cache is small enough."""
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
    """Open the dataset at a folder's path or an fsspec URL.

    Raises:
        UserError: the URL cannot be read.
    """
    if "://" not in location:
        return LocalFolder(Path(location))
    return RemoteFolder(location, cache.expanduser(), int(cache_gb * 1e9))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
