"""Small file helpers used everywhere: hashing, reading compressed text and JSON, durable writes, locks."""

from __future__ import annotations

import bz2
import contextlib
import errno
import fcntl
import gzip
import hashlib
import json
import math
import os
import secrets
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from trelm_ds.errors import UnreadableError, UserError

_LOCK_ATTEMPTS = 10
_LOCK_PAUSE_S = 0.05
_POINTER = b"version https://git-lfs"
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2"}


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_binary(path: Path) -> IO[bytes]:
    """Open a plain, gzip or bzip2 file for reading; detect the compression from its first bytes, not its name.

    Raises:
        UserError: the file does not exist or cannot be read.
    """
    try:
        raw = path.open("rb")
    except OSError as error:
        raise UnreadableError(path, error) from None
    start = raw.read(3)
    raw.seek(0)
    kind = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
    if kind == "gzip":
        return cast(IO[bytes], gzip.open(raw))
    return bz2.open(raw) if kind == "bzip2" else raw


# What the decompressors raise for a truncated or damaged file.
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, OSError)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its newline) of a plain or compressed UTF-8 file.

    Raises:
        UserError: the file is missing, truncated or damaged, or a line is not UTF-8; names file and line.
    """
    number = 0
    with open_binary(path) as stream:
        try:
            for number, line in enumerate(stream, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:{number}: not valid UTF-8 ({error.reason} at byte {error.start})") from None
        except DAMAGED as error:
            raise UserError(f"{path}:{number + 1}: damaged or truncated file ({error}); fetch it again") from None


def fsync_path(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk: only then do they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Flush a folder and everything below it to disk, before it is renamed to where it is looked for."""
    for path in folder.rglob("*"):
        fsync_path(path)
    fsync_path(folder)


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replace a file durably: readers see the old content or the new, never part of it.

    Raises:
        OSError: it cannot be written; names the file.
    """
    # The name is random as well: processes of different nodes may share both the folder and a pid.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data.encode("utf-8") if isinstance(data, str) else data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # a full disk's names no file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    fsync_path(path.parent)


def append_line(path: Path, line: str) -> None:
    """Append a whole line or nothing: a partial line, left by a full disk, would corrupt the next one as well.

    Raises:
        OSError: the line cannot be written; the file is unchanged.
    """
    data = line.encode("utf-8") + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if os.write(descriptor, data) < len(data):
            os.ftruncate(descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


def canonical_json(value: Any) -> str:
    """Serialize to JSON with a single possible spelling, for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def read_json(path: Path, unique_keys: bool = False) -> Any:
    """Read a JSON file.

    Args:
        unique_keys: refuse objects in which a key stands twice, of which the last would count.

    Raises:
        UserError: the file is missing or not JSON; names file and line.
    """
    try:
        with open(path, encoding="utf-8-sig") as stream:
            return json.load(stream, object_pairs_hook=_unique if unique_keys else None)
    except OSError as error:
        raise UnreadableError(path, error) from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a thousand brackets
        raise UserError(f"{path}: not valid JSON: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"'{key}' stands twice in one object")
        found[key] = value
    return found


def refuse_pointers(folder: Path) -> None:
    """Refuse a folder with the small texts that git checks out in place of large files where git-lfs is missing.

    Raises:
        UserError: a file is such a text.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            with path.open("rb") as stream:
                start = stream.read(len(_POINTER))
        except OSError:
            continue  # the reader of that file says so
        if start == _POINTER:
            raise UserError(f"{path}: is a git-lfs pointer, not the file; run `git lfs pull` in that repository")


def load_array(path: Path) -> np.ndarray:
    """Memory-map a .npy file of numbers.

    Raises:
        UserError: it is missing, cut off, or anything else.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; run `trelm prepare` again") from None
    except OSError as error:
        raise UnreadableError(path, error) from None
    except Exception as error:  # numpy lets any exception of its header's parser through
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: no array, or a damaged one ({reason}); run `trelm prepare` again") from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read the JSON objects of a file with one per line, skipping lines that are something else.

    A process killed while it appends leaves a partial line, which must not cost a reader the rest. A missing file has
    no objects.

    Raises:
        OSError: the file exists but cannot be read.
    """
    objects = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            if isinstance(content := json.loads(line), dict):
                objects.append(content)
    return objects


@contextlib.contextmanager
def waiting_lock(path: Path, wait_s: float = math.inf) -> Iterator[None]:
    """Wait for a lock between processes and hold it; it is released with its process, and the file stays.

    Where no lock is possible (a file system without locks, a read-only folder), continue without one.

    Raises:
        TimeoutError: another process has held it for `wait_s` seconds.
    """
    with contextlib.ExitStack() as held:
        try:
            _wait_for(held.enter_context(path.open("a")), wait_s)
        except TimeoutError:
            raise
        except OSError:
            pass
        yield


def _wait_for(stream: IO[str], wait_s: float) -> None:
    if wait_s == math.inf:
        return fcntl.flock(stream, fcntl.LOCK_EX)
    until = time.monotonic() + wait_s
    while True:
        try:
            return fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise TimeoutError from None
            time.sleep(_LOCK_PAUSE_S)


@contextlib.contextmanager
def lock(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path`, so that no two processes write into one folder; remove the file at the end.

    Args:
        path: the lock file.
        what: the subject of the error messages, such as "--out: RUN".

    Raises:
        UserError: another process holds the lock, the file cannot be created, or its file system has no locks and
            TRELM_NO_LOCKS=1 is not set.
    """
    try:
        stream = path.open("a")
    except OSError as error:
        raise UserError(f"{what} cannot be written: {error.strerror}") from None
    with stream:
        try:
            _acquire(stream)
            # The previous holder may have removed the file between our open and our lock; another process may hold a
            # new file of that name by now.
            if not path.exists() or path.stat().st_ino != os.fstat(stream.fileno()).st_ino:
                raise BlockingIOError
        except BlockingIOError:
            raise UserError(f"{what} is in use by another process; wait for it or choose another") from None
        except OSError as error:  # a file system without locks, such as Lustre mounted without
            if os.environ.get("TRELM_NO_LOCKS") != "1":
                path.unlink(missing_ok=True)
                raise UserError(
                    f"{what}: its file system has no locks ({error.strerror}), so two processes could write there; "
                    "mount it with them (Lustre: -o flock), or set TRELM_NO_LOCKS=1 and see to it yourself"
                ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def is_locked(path: Path) -> bool | None:
    """Return whether a process holds `lock(path)`; None where the file system cannot tell."""
    try:
        with path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:  # a file system without locks
        return None
    return False


def _acquire(stream: IO[str]) -> None:
    """Lock a file, retrying for half a second, because `is_locked` in another process holds it for an instant."""
    for attempt in range(_LOCK_ATTEMPTS + 1):
        try:
            return fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt == _LOCK_ATTEMPTS:
                raise
            time.sleep(_LOCK_PAUSE_S)
