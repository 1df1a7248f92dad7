"""Small file helpers shared by every room: hashing, reading compressed text, atomic writing."""

from __future__ import annotations

import bz2
import contextlib
import errno
import fcntl
import gzip
import hashlib
import json
import os
import secrets
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from trelm_ds.errors import UserError

_LOOKS = 10
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2"}


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_binary(path: Path) -> IO[bytes]:
    """Opens a plain, gzip or bzip2 file for reading; the compression is told by its first bytes, not its name.

    Raises:
        UserError: the file does not exist or cannot be read.
    """
    try:
        raw = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    start = raw.read(3)
    raw.seek(0)
    kind = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
    if kind == "gzip":
        return cast(IO[bytes], gzip.open(raw))
    return bz2.open(raw) if kind == "bzip2" else raw


# What the decompressors raise on a truncated or damaged file.
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, OSError)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line without its newline) of a plain or compressed UTF-8 file.

    Raises:
        UserError: missing, truncated or damaged file, or a line that is not UTF-8; names file and line.
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


def fsync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes | str) -> None:
    """Writes a whole file: readers see the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")  # nodes share folders
    try:
        with temporary.open("wb") as stream:
            stream.write(data.encode("utf-8") if isinstance(data, str) else data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Adds a line whole or not at all: a piece of one, left by a full disk, would spoil the next line too.

    Raises:
        OSError: it cannot be written; the file is as before.
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
    """JSON with one possible spelling, for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: missing file or not JSON; names file and line.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from None


@contextlib.contextmanager
def turn(path: Path) -> Iterator[None]:
    """Waits for and holds a lock among processes, which goes with its process; the file stays.

    Without one goes on where there can be none: a file system without locks, a folder that cannot be written.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            fcntl.flock(held.enter_context(path.open("a")), fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def lock(path: Path, what: str) -> Iterator[None]:
    """Holds `path` for this process, so that two do not write into one folder; the file goes with the process.

    Raises:
        UserError: another process holds it, or it cannot be made.
    """
    try:
        stream = path.open("a")
    except OSError as error:
        raise UserError(f"{what} cannot be written: {error.strerror}") from None
    with stream:
        try:
            _take(stream)
            if not path.exists() or path.stat().st_ino != os.fstat(stream.fileno()).st_ino:
                raise BlockingIOError  # whoever held it removed it just now, and another may hold the next
        except BlockingIOError:
            raise UserError(f"{what} is in use by another process; wait for it or choose another") from None
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def is_locked(path: Path) -> bool | None:
    """Whether a process holds `path` by `lock`; None where the file system does not say."""
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


def _take(stream: IO[str]) -> None:
    """Locks a file; tries again for half a second, since `is_locked` holds it for an instant."""
    for attempt in range(_LOOKS + 1):
        try:
            return fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt == _LOOKS:
                raise
            time.sleep(0.05)
