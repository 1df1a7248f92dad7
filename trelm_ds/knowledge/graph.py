"""Wikidata5M (triples, entity and relation names) as memory-mapped compressed sparse rows."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from trelm_ds.errors import UserError
from trelm_ds.files import read_lines
from trelm_ds.progress import track

_ENDINGS = ("", ".gz")
REQUIRED = ("all_triplet", "entity", "relation")


def find_wikidata5m(folder: Path) -> dict[str, Path]:
    """Finds `wikidata5m_{all_triplet,entity,relation}.txt[.gz]` and, if there, `wikidata5m_text.txt[.gz]`.

    Raises:
        UserError: the folder or one of the three required files is missing.
    """
    if not folder.is_dir():
        raise UserError(f"--wikidata5m: {folder} is not a folder")
    found: dict[str, Path] = {}
    for part in (*REQUIRED, "text"):
        for ending in _ENDINGS:
            path = folder / f"wikidata5m_{part}.txt{ending}"
            if path.is_file():
                found.setdefault(part, path)
        if part in REQUIRED and part not in found:
            raise UserError(f"--wikidata5m: {folder} lacks wikidata5m_{part}.txt (or .txt.gz)")
    return found


def _number(text: str, letter: str, place: str) -> int:
    """The number of an id such as Q42 or P31."""
    digits = text[1:]
    if text[:1] != letter or not (digits.isascii() and digits.isdigit()) or len(digits) > 9:
        raise UserError(f"{place}: expected an id such as {letter}42, got {text[:40]!r}")
    return int(digits)


def read_names(path: Path, letter: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (number of the id, its names, label first) from `ID<TAB>name<TAB>name...` lines.

    Raises:
        UserError: malformed line; names file and line.
    """
    for line_number, line in read_lines(path):
        first, *names = line.split("\t")
        yield _number(first, letter, f"{path}:{line_number}"), [name for name in names if name.strip()]


def _read_triples(path: Path) -> np.ndarray:
    """All triples as int32 [N, 3] (head, relation, tail numbers), sorted, duplicates removed."""
    numbers = array("i")
    for line_number, line in track(read_lines(path), "reading triples"):
        parts = line.split("\t")
        place = f"{path}:{line_number}"
        if len(parts) != 3:
            raise UserError(f"{place}: expected head<TAB>relation<TAB>tail, got {len(parts)} field(s): {line[:80]!r}")
        head, relation, tail = parts
        numbers.extend((_number(head, "Q", place), _number(relation, "P", place), _number(tail, "Q", place)))
    if not numbers:
        raise UserError(f"{path}: holds no triple")
    return np.unique(np.frombuffer(numbers, dtype=np.int32).reshape(-1, 3), axis=0)


def _rows(sources: np.ndarray, relations: np.ndarray, others: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """Compressed sparse rows of edges grouped by `sources`: offsets [size + 1], relations [N], others [N]."""
    order = np.argsort(sources, kind="stable")
    offsets = np.zeros(size + 1, dtype=np.int64)
    np.cumsum(np.bincount(sources, minlength=size), out=offsets[1:])
    return offsets, relations[order], others[order]


@dataclass(frozen=True)
class KnowledgeGraph:
    """A directed labelled graph in both directions. E entities, R relations, N triples; rows are index numbers.

    Attributes:
        entities: int32 [E], the number of each row's QID, ascending.
        relations: int32 [R], the number of each relation's PID, ascending.
        out_offsets, out_relations, out_entities: int64 [E + 1], int32 [N], int32 [N]; triples by head.
        in_offsets, in_relations, in_entities: the same by tail.
    """

    entities: np.ndarray
    relations: np.ndarray
    out_offsets: np.ndarray
    out_relations: np.ndarray
    out_entities: np.ndarray
    in_offsets: np.ndarray
    in_relations: np.ndarray
    in_entities: np.ndarray

    @classmethod
    def from_triples(cls, path: Path) -> KnowledgeGraph:
        """Reads `Qh<TAB>Pr<TAB>Qt` lines, plain or gzip.

        Raises:
            UserError: malformed line (names file and line), damaged or empty file.
        """
        triples = _read_triples(path)
        entities = np.unique(triples[:, [0, 2]])
        relations, relation = np.unique(triples[:, 1], return_inverse=True)
        head, tail = (np.searchsorted(entities, triples[:, column]).astype(np.int32) for column in (0, 2))
        relation = relation.astype(np.int32)
        size = len(entities)
        return cls(entities, relations, *_rows(head, relation, tail, size), *_rows(tail, relation, head, size))

    @property
    def n_triples(self) -> int:
        return len(self.out_entities)

    def degrees(self, qids: np.ndarray) -> np.ndarray:
        """Number of triples (either direction) of each QID number in `qids` [n]; 0 for one the graph lacks."""
        row = np.minimum(np.searchsorted(self.entities, qids), len(self.entities) - 1)
        degree = np.diff(self.out_offsets)[row] + np.diff(self.in_offsets)[row]
        return np.where(self.entities[row] == qids, degree, 0)

    def save(self, folder: Path) -> None:
        """Writes one .npy file per array into `folder`."""
        folder.mkdir(parents=True)
        for item in fields(self):
            np.save(folder / f"{item.name}.npy", getattr(self, item.name))

    @classmethod
    def load(cls, folder: Path) -> KnowledgeGraph:
        """Memory-maps what `save` wrote.

        Raises:
            UserError: an array is missing.
        """
        try:
            return cls(*(np.load(folder / f"{item.name}.npy", mmap_mode="r") for item in fields(cls)))
        except FileNotFoundError as error:
            raise UserError(f"{error.filename}: missing; run `trelm prepare` again") from None
