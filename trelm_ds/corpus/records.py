"""Split files into records (a `<page>` of a dump, a line of JSONL) by ranges of bytes.

A record belongs to the range in which it begins. So ranges can be read in any order by any number of processes, and
together they yield every record exactly once.
"""

from __future__ import annotations

import bz2
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal, NamedTuple

from trelm_ds.errors import UserError
from trelm_ds.files import DAMAGED, open_binary

Kind = Literal["mediawiki", "linked"]
# Where reading can begin: at any byte, at any of the file's bzip2 streams, or only at the beginning.
Layout = Literal["plain", "multistream", "stream"]

_PIECE = 1 << 20  # bytes read at a time
_LARGEST_RECORD = 256 << 20
_BZ2_START = re.compile(rb"BZh[1-9]1AY&SY")  # header of a stream, then its first block's magic number of six bytes
_OPENING = re.compile(rb"<page[>\s]")
_CLOSING, _END = b"</page>", b"</mediawiki>"
_OVERLAP = 64  # bytes searched again with the next piece, in case it cuts a tag; longer than any of the above


class Record(NamedTuple):
    """One page or line; `place` is its byte offset (mediawiki) or line number (linked) within the range read."""

    data: bytes
    place: int


def layout_of(path: Path, kind: Kind) -> Layout:
    """Determine how a file can be read. A bzip2 dump is multistream if its first stream ends within 4 MiB."""
    with path.open("rb") as raw:
        start = raw.read(3)
        if start[:2] == b"\x1f\x8b" or (start == b"BZh" and kind == "linked"):
            return "stream"
        if start != b"BZh":
            return "plain"
        raw.seek(0)
        decompressor, unpacked = bz2.BZ2Decompressor(), 0
        try:
            while raw.tell() < 4 << 20 and not decompressor.eof and unpacked < _LARGEST_RECORD:
                data = raw.read(_PIECE) if decompressor.needs_input else b""
                if decompressor.needs_input and not data:
                    break
                unpacked += len(decompressor.decompress(data, _PIECE))  # in pieces: it can expand to gigabytes
        except OSError:
            return "stream"  # damaged, which is reported when it is read
        return "multistream" if decompressor.eof and (decompressor.unused_data or raw.read(1)) else "stream"


def read_range(
    path: Path, layout: Layout, kind: Kind, start: int, end: int, reached: list[int] | None = None
) -> Iterator[Record]:
    """Yield the records that begin in the stored bytes [start, end) of a plain or multistream file.

    Args:
        path, layout, kind: the file.
        start, end: the range.
        reached: receives the stored byte at which reading ended: the last record may extend beyond the range.

    Raises:
        UserError: the file is truncated or damaged, or a record has more than 256 MiB.
    """
    try:
        with path.open("rb") as raw:
            if kind == "linked":
                yield from _lines(raw, start, end, path)
            else:
                pieces = _streams(raw, start, end) if layout == "multistream" else _bytes(raw, start, end)
                yield from _pages(pieces, path, at_end=True)
            if reached is not None:
                reached.append(raw.tell())
    except DAMAGED as error:
        raise _damaged(path, error) from None


def read_stream(path: Path, kind: Kind, chunk_bytes: int) -> Iterator[tuple[bytes, int, bool]]:
    """Read a file that can only be read from the beginning, in chunks of whole records.

    Yields:
        (at least `chunk_bytes` decompressed bytes; decompressed offset (mediawiki) or line number (linked) of the first
        record; whether this is the last chunk).

    Raises:
        UserError: the file is truncated or damaged, or a record has more than 256 MiB.
    """
    closing = b"\n" if kind == "linked" else _CLOSING
    place, rest = int(kind == "linked"), b""
    try:
        with open_binary(path) as stream:
            # Doubling what is held while a record does not end keeps the search for its end linear.
            while data := stream.read(max(chunk_bytes, len(rest))):
                data = rest + data
                cut = data.rfind(closing) + len(closing)
                if cut < len(closing) or cut < chunk_bytes:
                    _check_size(len(data) - max(cut, 0), path)
                    rest = data
                    continue
                yield data[:cut], place, False
                place += data.count(b"\n", 0, cut) if kind == "linked" else cut
                rest = data[cut:]
    except DAMAGED as error:
        raise _damaged(path, error) from None
    yield rest, place, True


def records_in(chunk: bytes, kind: Kind, last: bool, path: Path) -> Iterator[Record]:
    """Yield the records of a chunk of `read_stream`; places are relative to the chunk.

    Raises:
        UserError: the dump is truncated.
    """
    if kind == "linked":
        yield from (Record(line, number) for number, line in enumerate(chunk.split(b"\n")))
    else:
        yield from _pages(iter([(chunk, True)]), path, at_end=last)


def _damaged(path: Path, error: BaseException) -> UserError:
    return UserError(f"{path}: damaged or truncated file ({error}); fetch it again")


def _check_size(size: int, path: Path) -> None:
    if size > _LARGEST_RECORD:
        raise UserError(f"{path}: a record of more than {_LARGEST_RECORD >> 20} MiB; is the file damaged?")


def _lines(raw: IO[bytes], start: int, end: int, path: Path) -> Iterator[Record]:
    """Yield the lines that begin in the bytes [start, end)."""
    position = max(0, start - 1)
    raw.seek(position)
    number = 0
    if start:  # bytes before the first newline belong to a line of the previous range
        position += len(raw.readline(_LARGEST_RECORD + 1))
    while position < end and (line := raw.readline(_LARGEST_RECORD + 1)):
        _check_size(len(line), path)
        yield Record(line.rstrip(b"\n"), number)
        position += len(line)
        number += 1


def _bytes(raw: IO[bytes], start: int, end: int) -> Iterator[tuple[bytes, bool]]:
    """Yield (bytes, whether they lie in the range) from `start` to the end of the file."""
    raw.seek(start)
    while data := raw.read(min(_PIECE, end - start) if start < end else _PIECE):
        yield data, start < end
        start += len(data)


def _streams(raw: IO[bytes], start: int, end: int) -> Iterator[tuple[bytes, bool]]:
    """Yield (decompressed bytes, whether their stream begins in the range), from the range's first stream on."""
    position = _next_stream(raw, start, end)
    if position is None:
        return
    raw.seek(position)
    data = raw.read(_PIECE)
    while data:
        decompressor, inside = bz2.BZ2Decompressor(), position < end
        while not decompressor.eof:
            yield decompressor.decompress(data, _PIECE), inside  # in pieces: a few bytes can expand to gigabytes
            if decompressor.needs_input and not decompressor.eof:
                data = raw.read(_PIECE)
                if not data:
                    raise EOFError("it ends within a bzip2 stream")
            else:
                data = b""
        data = decompressor.unused_data or raw.read(_PIECE)
        position = raw.tell() - len(data)


def _next_stream(raw: IO[bytes], start: int, end: int) -> int | None:
    """Find the first bzip2 stream that begins in [start, end); unlike blocks, streams begin at byte boundaries."""
    raw.seek(start)
    window, base = b"", start
    while base < end and (data := raw.read(_PIECE)):
        window += data
        if found := _BZ2_START.search(window):
            return base + found.start() if base + found.start() < end else None
        kept = window[-_OVERLAP:]
        window, base = kept, base + len(window) - len(kept)
    return None


def _pages(pieces: Iterator[tuple[bytes, bool]], path: Path, at_end: bool) -> Iterator[Record]:
    """Yield the pages that begin inside the range.

    Args:
        pieces: (bytes, whether they are inside), inside ones first.
        path: for error messages.
        at_end: whether the pieces extend to the end of the file, so that its closing tag must be there.
    """
    buffer = bytearray()
    base = owned = 0  # offsets from the first piece: of the buffer, and of the first byte outside
    still_inside = True

    def pull() -> bool:
        """Append the next piece to the buffer; False if there is none."""
        nonlocal owned, still_inside
        data, inside = next(pieces, (b"", None))
        buffer.extend(data)
        owned += len(data) if inside else 0
        still_inside = bool(inside)
        return inside is not None

    while True:
        found = _find(_OPENING, buffer)
        if found < 0:
            done = max(0, len(buffer) - _OVERLAP)
            del buffer[:done]
            base += done
            if base >= owned and not still_inside:
                return
            if not pull():
                break
            continue
        if base + found >= owned:
            return
        searched = found
        while (closing := buffer.find(_CLOSING, searched)) < 0:
            _check_size(len(buffer) - found, path)
            searched = max(found, len(buffer) - len(_CLOSING))
            if not pull():
                raise UserError(f"{path}: ends within a page; is it truncated?")
        closing += len(_CLOSING)
        yield Record(bytes(buffer[found:closing]), base + found)
        del buffer[:closing]
        base += closing
    if at_end and owned and _END not in buffer:
        raise UserError(f"{path}: ends without {_END.decode()}; is it truncated?")


def _find(pattern: re.Pattern[bytes], buffer: bytearray) -> int:
    found = pattern.search(buffer)
    return found.start() if found else -1
