"""Discovery of the text files behind `--source`, whose kind is detected from content, and division into chunks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from trelm_ds import log
from trelm_ds.corpus.artifacts import find, key_of, make
from trelm_ds.corpus.records import Kind, Layout, Record, layout_of, read_range, read_stream, records_in
from trelm_ds.corpus.site import ENGLISH, Site, read_site
from trelm_ds.errors import UserError
from trelm_ds.files import DAMAGED, open_binary, sha256_of

_PEEK = 4096  # bytes read to detect the kind of a file
_LONGEST_SITEINFO = 1 << 20  # bytes before the first page of a dump in which its <siteinfo> is looked for


@dataclass(frozen=True)
class Source:
    """One text file; `number` is its index among the sources, `bytes` its stored size, `site` a dump's wiki."""

    number: int
    path: Path
    kind: Kind
    layout: Layout
    bytes: int
    site: Site = field(default=ENGLISH)


def find_sources(source: Path) -> list[Source]:
    """List the files of `source`, a file or a folder; numbers in file names are sorted numerically.

    Raises:
        UserError: there is no file, its content is unknown, or a folder mixes kinds.
    """
    if not source.exists():
        raise UserError(f"--source: {source} does not exist")
    if not source.is_dir() and not source.is_file():
        raise UserError(f"--source: {source} is neither a file nor a folder; pipes cannot be read twice")
    files = _files_of(source) if source.is_dir() else [source]
    if not files:
        raise UserError(f"--source: {source} holds no file")
    heads = {path: _head(path) for path in files}
    kinds = {path: _kind(path, head) for path, head in heads.items()}
    first = kinds[files[0]]
    for path, kind in kinds.items():
        if kind != first:
            raise UserError(f"--source: {path} is {kind}, {files[0]} is {first}; prepare them one after the other")
    sources = [
        Source(number, path, first, layout_of(path, first), path.stat().st_size, _site(first, heads[path]))
        for number, path in enumerate(files)
    ]
    _warn_of_language(sources)
    return sources


def _files_of(folder: Path) -> list[Path]:
    """List a folder's files except hidden ones and multistream indices; warn about anything else that is skipped."""
    found = []
    for path in sorted(folder.iterdir(), key=_natural):
        if path.name.startswith(".") or "multistream-index" in path.name:
            continue
        if path.is_file():
            found.append(path)
        else:
            what = "a folder" if path.is_dir() else "a broken link" if path.is_symlink() else "not a regular file"
            log.warning(f"--source: skipping {path}, which is {what}")
    return found


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sort key that puts part 10 after part 9."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(int(part), "") if part.isdecimal() and part.isascii() else (-1, part) for part in parts], path.name


def _head(path: Path) -> str:
    """Read the first bytes of a file; of a dump all that stands before its first page, if it is not too much."""
    with open_binary(path) as stream:
        try:
            start = stream.read(_PEEK)
            while b"<mediawiki" in start and b"<page" not in start and len(start) < _LONGEST_SITEINFO:
                if not (more := stream.read(_PEEK)):
                    break
                start += more
        except DAMAGED as error:
            raise UserError(f"{path}: damaged or truncated file ({error}); fetch it again") from None
    return start.decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n")


def _site(kind: Kind, head: str) -> Site:
    return read_site(head.partition("<page")[0]) if kind == "mediawiki" else ENGLISH


def _warn_of_language(sources: list[Source]) -> None:
    """Say once what is only known in English."""
    foreign = next((source for source in sources if not source.site.is_english), None)
    if foreign is not None:
        log.warning(
            f"--source: {foreign.path} is in the language {foreign.site.language}: its namespaces are known, but "
            "closing sections, lists, disambiguation pages and templates are known by their English names only"
        )


def _kind(path: Path, text: str) -> Kind:
    """Detect the kind of a file from its beginning."""
    if text.startswith("<?xml"):
        declared = re.match(r"<\?xml[^>]*encoding=[\"']([^\"']+)", text)
        if declared and declared.group(1).lower() not in ("utf-8", "utf8"):
            raise UserError(f"{path}: its encoding is {declared.group(1)}; convert it to UTF-8")
        text = text.partition("?>")[2].lstrip()
    if text.startswith("<mediawiki"):
        return "mediawiki"
    if text.startswith("<") and text[1:2].isalpha():
        raise UserError(f"{path}: not a MediaWiki export: its first element is <{re.split('[ >/]', text[1:])[0]}>")
    if text.startswith("{"):
        return "linked"
    raise UserError(f"{path}: neither a MediaWiki dump (<mediawiki ...>) nor linked JSONL ({{...}} lines)")


@dataclass(frozen=True)
class Chunk:
    """A unit of extraction: a range of a source's stored bytes, or, for layout stream, decompressed bytes.

    Attributes:
        source: the file.
        number: index of the chunk in the file.
        start, end: stored bytes (layout plain or multistream); else 0.
        data: decompressed bytes (layout stream); None for a chunk known to be unchanged, whose bytes are not needed.
        place: line number or offset at which `data` begins.
        last: whether it is the file's last chunk (layout stream).
        content: sha256 of `data` (layout stream); else "".
    """

    source: Source
    number: int
    start: int = 0
    end: int = 0
    data: bytes | None = None
    place: int = 0
    last: bool = False
    content: str = ""

    @property
    def name(self) -> str:
        """Name of the chunk's artifact; names sort in reading order."""
        return f"{self.source.number:05d}-{self.number:09d}"

    def identity(self) -> list[object]:
        """Return what determines its records, except for the bytes of its last record beyond the range."""
        if self.source.layout == "stream":
            return [self.content, self.last]
        # The byte before the range determines whether a line begins at `start`.
        return [self.source.layout, self.start, self.end, self.hash(max(0, self.start - 1), self.end)]

    def hash(self, start: int, end: int) -> str:
        """Hash the file's stored bytes [start, end) with sha256."""
        digest = hashlib.sha256()
        with self.source.path.open("rb") as stream:
            stream.seek(start)
            while start < end and (data := stream.read(min(end - start, 1 << 24))):
                digest.update(data)
                start += len(data)
        return digest.hexdigest()

    def records(self, reached: list[int] | None = None) -> Iterator[Record]:
        """Yield its pages or lines; `reached` receives the stored byte at which reading ended (not for layout stream).

        Raises:
            UserError: the file is truncated or damaged.
        """
        path, kind, layout = self.source.path, self.source.kind, self.source.layout
        if layout != "stream":
            yield from read_range(path, layout, kind, self.start, self.end, reached)
            return
        assert self.data is not None
        for record in records_in(self.data, kind, self.last, path):
            yield record._replace(place=self.place + record.place)

    def where(self, record: Record) -> str:
        """Describe where a record is, for messages: file and line (linked) or file and byte (mediawiki)."""
        place = record.place
        if self.source.kind == "mediawiki":
            about = "about " if self.source.layout == "multistream" else ""
            return f"{self.source.path}: {about}byte {self.start + place}"
        if self.source.layout == "plain":  # lines are counted only for messages: it means reading the file again
            with self.source.path.open("rb") as stream:
                before, left = 0, self.start
                while left and (data := stream.read(min(left, 1 << 24))):
                    before, left = before + data.count(b"\n"), left - len(data)
                stream.seek(max(0, self.start - 1))
                cut = self.start and stream.read(1) != b"\n"
            place += before + 1 + bool(cut)
        return f"{self.source.path}:{place}"


def chunks_of(source: Source, chunk_bytes: int, work: Path, part: tuple[int, int]) -> Iterator[Chunk]:
    """Yield the source's chunks that belong to a part.

    A file that can only be read from the beginning is read only if its index, kept in `work`, is missing; with an index
    its chunks come without data.

    Args:
        source: the file.
        chunk_bytes: stored bytes per chunk (decompressed bytes for layout stream).
        work: folder for the index.
        part: (i, n), the i-th of n parts, counted from 0; chunk c of file f belongs to part (f + c) mod n.
    """
    if source.layout == "stream":
        yield from _stream_chunks(source, chunk_bytes, work, part)
        return
    for number in range(max(1, -(-source.bytes // chunk_bytes))):
        if (source.number + number) % part[1] == part[0]:
            start = number * chunk_bytes
            yield Chunk(source, number, start, min(start + chunk_bytes, source.bytes))


def _stream_chunks(source: Source, chunk_bytes: int, work: Path, part: tuple[int, int]) -> Iterator[Chunk]:
    """Yield a part's chunks of a file of layout stream, and write its index if it is missing."""
    folder, key = work / f"{source.number:05d}", key_of("index", source.kind, chunk_bytes, sha256_of(source.path))
    mine = (part[0] - source.number) % part[1]
    index = find(folder, key)
    if index is not None:
        for number, (content, place, last) in enumerate(index.notes["chunks"]):
            if number % part[1] == mine:
                yield Chunk(source, number, place=place, last=last, content=content)
        return
    entries = []
    for number, (data, place, last) in enumerate(read_stream(source.path, source.kind, chunk_bytes)):
        content = hashlib.sha256(data).hexdigest()
        entries.append([content, place, last])
        if number % part[1] == mine:
            yield Chunk(source, number, data=data, place=place, last=last, content=content)
    with make(folder, key) as (_, notes):
        notes["chunks"] = entries


def with_data(chunks: list[Chunk], chunk_bytes: int) -> Iterator[Chunk]:
    """Yield the given chunks of one file with their data, reading the file from the beginning."""
    wanted = {chunk.number: chunk for chunk in chunks}
    if not wanted:
        return
    source = chunks[0].source
    for number, (data, _, _) in enumerate(read_stream(source.path, source.kind, chunk_bytes)):
        if number in wanted:
            yield replace(wanted.pop(number), data=data)
        if not wanted:
            return
