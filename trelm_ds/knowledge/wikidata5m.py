"""Reader of the published Wikidata5M files and archives: triples, entity and relation names, descriptions."""

from __future__ import annotations

import codecs
import contextlib
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import numpy as np

from trelm_ds.errors import UserError
from trelm_ds.files import DAMAGED, open_binary
from trelm_ds.malformed import MalformedRecords
from trelm_ds.progress import ProgressBar

_PIECE = 1 << 23  # bytes read at a time
_LONGEST_LINE = 1 << 24
_TRIPLES = re.compile(rb"(?:Q[0-9]{1,9}\tP[0-9]{1,9}\tQ[0-9]{1,9}\r?\n)*")
_ID = re.compile(r"[PQ][0-9]{1,9}")
_SPLITS = tuple(f"wikidata5m_transductive_{split}.txt" for split in ("train", "valid", "test"))
_REQUIRED = {"wikidata5m_entity.txt": "entity", "wikidata5m_relation.txt": "relation"}


class GraphFile(NamedTuple):
    """A text file, or a member of a tar archive, which is read without unpacking the archive."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)


class Wikidata5M(NamedTuple):
    """The files of Wikidata5M.

    Attributes:
        triples: one file, or the three transductive splits.
        entity, relation: names, `ID<TAB>name<TAB>name...` a line, label first.
        text: descriptions, `QID<TAB>description` a line; None if there is no such file.
    """

    triples: list[GraphFile]
    entity: GraphFile
    relation: GraphFile
    text: GraphFile | None = None

    @property
    def names(self) -> list[GraphFile]:
        """The files with names and descriptions."""
        return [file for file in (self.entity, self.relation, self.text) if file is not None]

    @property
    def paths(self) -> list[Path]:
        """Every file on disk, without duplicates."""
        return sorted({file.path for file in (*self.triples, *self.names)})


def find_wikidata5m(folder: Path) -> Wikidata5M:
    """Find `wikidata5m_{all_triplet,entity,relation,text}.txt`, plain, `.gz` or inside `wikidata5m_*.tar.gz` archives.

    Without `all_triplet`, the three files of the transductive split are combined; `text` is optional.

    Raises:
        UserError: the folder or a file is missing, or an archive is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"--wikidata5m: {folder} is not a folder")
    found: dict[str, GraphFile] = {}
    for path in sorted(path for path in folder.iterdir() if path.name.startswith("wikidata5m_")):
        if path.name.endswith((".tar.gz", ".tgz", ".tar", ".tar.bz2")):
            with _archive(path) as archive:
                for member in archive:
                    name = PurePosixPath(member.name).name
                    if member.isreg() and name.startswith("wikidata5m_"):
                        found.setdefault(name, GraphFile(path, member.name))
        elif path.is_file():
            found[path.name.removesuffix(".gz").removesuffix(".bz2")] = GraphFile(path)
    for name in _REQUIRED:
        if name not in found:
            raise UserError(f"--wikidata5m: {folder} lacks {name} (or .txt.gz, or a .tar.gz with it)")
    if "wikidata5m_all_triplet.txt" in found:
        triples = [found["wikidata5m_all_triplet.txt"]]
    elif all(name in found for name in _SPLITS):
        triples = [found[name] for name in _SPLITS]
    else:
        raise UserError(f"--wikidata5m: {folder} lacks wikidata5m_all_triplet.txt (or .gz, or the transductive split)")
    names = (found["wikidata5m_entity.txt"], found["wikidata5m_relation.txt"], found.get("wikidata5m_text.txt"))
    return Wikidata5M(triples, *names)


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, "r:*") as archive:
            yield archive
    except (tarfile.TarError, *DAMAGED) as error:
        raise UserError(f"{path}: damaged or truncated archive ({error}); fetch it again") from None


@contextlib.contextmanager
def _open(file: GraphFile) -> Iterator[IO[bytes]]:
    """Open a file, or a member of an archive, for reading; nothing is ever unpacked to disk."""
    if file.member is None:
        with open_binary(file.path) as stream:
            yield stream
        return
    with _archive(file.path) as archive:
        content = archive.extractfile(file.member)
        assert content is not None
        with content:
            yield content


def _blocks(file: GraphFile) -> Iterator[bytes]:
    """Yield blocks of whole lines, several MB at a time, without a byte-order mark and empty lines at the end."""
    rest, begun = b"", False
    try:
        with _open(file) as stream:
            while data := stream.read(_PIECE):
                data = rest + (data if begun else data.removeprefix(codecs.BOM_UTF8))
                begun = True
                # Up to the last line that is not empty: the empty ones behind it count only if more follows.
                cut = data.find(b"\n", len(data[: data.rfind(b"\n") + 1].rstrip(b"\r\n"))) + 1
                if not data[:cut].strip(b"\r\n"):
                    cut = 0
                if len(data) - cut > _LONGEST_LINE:
                    raise UserError(f"{file}: a line of more than {_LONGEST_LINE >> 20} MiB; is it damaged?")
                if cut:
                    yield data[:cut]
                rest = data[cut:]
    except DAMAGED as error:
        raise UserError(f"{file}: damaged or truncated file ({error}); fetch it again") from None
    if rest := rest.rstrip(b"\r\n"):
        yield rest + b"\n"


def number_of(text: str, letter: str) -> int:
    """Parse an id such as Q42 or P31 into its number.

    Raises:
        UserError: the text is not such an id.
    """
    if not _ID.fullmatch(text) or text[0] != letter:
        raise UserError(f"expected an id such as {letter}42, got {text[:40]!r}")
    return int(text[1:])


def read_names(
    file: GraphFile, letter: str, max_malformed: float = 0.0, counts: Counter[str] | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of the id, its names, label first) from `ID<TAB>name<TAB>name...` lines.

    Args:
        file: entity names, relation names, or descriptions (one "name" per line).
        letter: Q or P.
        max_malformed: share of the lines that may be malformed; these are skipped with a warning.
        counts: receives the number of malformed lines.

    Raises:
        UserError: the file is damaged, or has too many malformed lines; names file and line.
    """
    malformed = MalformedRecords(file.path, max_malformed)
    number = 0
    for block in _blocks(file):
        for line in block[:-1].split(b"\n"):
            number += 1
            try:
                first, *names = line.decode("utf-8").rstrip("\r").split("\t")
                entity = number_of(first, letter)
            except UnicodeDecodeError as error:
                malformed.add([f"{file}:{number}: not valid UTF-8 ({error.reason} at byte {error.start})"])
            except UserError as error:
                malformed.add([f"{file}:{number}: {error}"])
            else:
                yield entity, [name for name in names if name.strip()]
    malformed.check(number)
    if counts is not None:
        counts["names: lines left out, malformed"] += malformed.count


def read_triples(files: list[GraphFile], max_malformed: float = 0.0) -> tuple[np.ndarray, int, int]:
    """Read `head<TAB>relation<TAB>tail` lines.

    Args:
        files: read in this order.
        max_malformed: share of a file's lines that may be malformed; these are skipped with a warning.

    Returns:
        unique triples int32 [N, 3] (numbers of head, relation, tail), sorted; the number of duplicates dropped; the
        number of malformed lines.

    Raises:
        UserError: a file is damaged, empty, or has too many malformed lines; names file and line.
    """
    parts = []
    n_malformed = 0
    with ProgressBar("reading triples", None) as bar:
        for file in files:
            malformed, lines = MalformedRecords(file.path, max_malformed), 0
            for block in _blocks(file):
                parts.append(_triples_of(block, file, lines, malformed))
                lines += block.count(b"\n")
                bar.advance(len(parts[-1]))
            malformed.check(lines)
            n_malformed += malformed.count
    triples = np.concatenate([np.zeros((0, 3), dtype=np.int32), *parts])
    if not len(triples):
        raise UserError(f"{files[0]}: holds no triple")
    order = np.lexsort(triples.T[::-1])
    triples = triples[order]
    first = np.append(True, (triples[1:] != triples[:-1]).any(axis=1))
    return triples[first], int((~first).sum()), n_malformed


def _triples_of(block: bytes, file: GraphFile, lines_before: int, malformed: MalformedRecords) -> np.ndarray:
    """Parse the well-formed lines of a block, int32 [n, 3]; note the others in `malformed`."""
    if not _TRIPLES.fullmatch(block):
        good = []
        for number, line in enumerate(block[:-1].split(b"\n"), lines_before + 1):
            if _TRIPLES.fullmatch(line + b"\n"):
                good.append(line)
            else:
                malformed.add([f"{file}:{number}: {_complaint(line)}"])
        block = b"\n".join(good)
    return np.fromstring(block.translate(None, b"QP\r").decode(), dtype=np.int32, sep=" ").reshape(-1, 3)


def _complaint(line: bytes) -> str:
    """Say what is wrong with a malformed line of triples."""
    try:
        parts = line.decode().rstrip("\r").split("\t")
    except UnicodeDecodeError as error:
        return f"not valid UTF-8 ({error.reason} at byte {error.start})"
    if len(parts) != 3:
        return f"expected head<TAB>relation<TAB>tail, got {len(parts)} field(s): {line[:80].decode(errors='replace')!r}"
    for text, letter in zip(parts, "QPQ", strict=True):
        try:
            number_of(text, letter)
        except UserError as error:
            return str(error)
    return "expected head<TAB>relation<TAB>tail"
