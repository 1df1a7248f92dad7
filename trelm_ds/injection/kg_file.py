"""Vectors of entities and relations with their ids, as KG-embedding libraries leave them. No pickle is ever opened.

One .npz or .safetensors file holds both kinds of vectors. Their ids (Q42, P31) are in the file as well, or in the
library's own tables beside it: PyKEEN's entity_to_id.tsv.gz, DGL-KE's entities.tsv, both `row TAB id`. In .safetensors
they are lines of the metadata or, as `trelm vectors train` writes them, arrays of numbers: 42 for Q42.
"""

from __future__ import annotations

import gzip
import re
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trelm_ds.errors import UserError
from trelm_ds.visible import visible


class Kind(NamedTuple):
    """Entities or relations, and what a file calls them.

    Attributes:
        noun: for messages.
        letter: an id is this letter and a number.
        vectors, ids: our names of the two arrays; ids of .safetensors may be in its metadata.
        pykeen: PyKEEN's name of the vectors in a model's state.
        dglke: how the name of DGL-KE's array of vectors ends.
        tables: files beside the vectors that may name their rows.
    """

    noun: str
    letter: str
    vectors: str
    ids: str
    pykeen: str
    dglke: str
    tables: tuple[str, ...]


ENTITIES = Kind(
    "entities",
    "Q",
    "entity_vectors",
    "entity_ids",
    "entity_representations.0._embeddings.weight",
    "_entity",
    ("entity_to_id.tsv.gz", "entity_to_id.tsv", "entities.tsv"),
)
RELATIONS = Kind(
    "relations",
    "P",
    "relation_vectors",
    "relation_ids",
    "relation_representations.0._embeddings.weight",
    "_relation",
    ("relation_to_id.tsv.gz", "relation_to_id.tsv", "relations.tsv"),
)
TRANSLATION = "transe"  # the method whose vectors fit, where the metadata names one
_INTEGERS = (torch.int32, torch.int64)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# tokenize.TokenError and OverflowError: of numpy, where a header of .npy is damaged.
_DAMAGED = (
    OSError,
    ValueError,
    EOFError,
    OverflowError,
    RuntimeError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    SafetensorError,
)


@dataclass(frozen=True)
class NamedVectors:
    """Vectors of entities or of relations.

    Attributes:
        vectors: float16, bfloat16, float32 or float64 [n, W] on the CPU, n and W above 0. Those of .safetensors are
            memory-mapped: only the rows that are used are read.
        numbers: int64 [n], 42 for Q42 or P42; -1 for an id of another form.
        example: one of the ids.
    """

    vectors: Tensor
    numbers: np.ndarray
    example: str


def read_kg_file(path: Path) -> tuple[NamedVectors, NamedVectors]:
    """Open the vectors of entities and of relations, both W wide.

    Raises:
        UserError: the file is damaged or of another type, an array or an id is missing, repeated or ambiguous, or
            shapes do not fit.
    """
    where = f"injection.file {path}"
    try:
        if path.suffix == ".npz":
            entities, relations = _read_npz(path, where)
        elif path.suffix == ".safetensors":
            entities, relations = _read_safetensors(path, where)
        else:
            raise UserError(f"{where}: must be .npz or .safetensors; docs/knowledge.md says how to write one")
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{where}: does not fit into memory; write it as .safetensors, which is read by rows") from None
    except FileNotFoundError:
        raise UserError(f"{where}: does not exist") from None
    except _DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{where}: cannot be read ({reason}); write it again") from None
    widths = entities.vectors.shape[1], relations.vectors.shape[1]
    if widths[0] != widths[1]:
        raise UserError(
            f"{where}: entities are {widths[0]} wide, relations {widths[1]}; the rule v_tail = v_head + v_relation "
            "needs a model with one width, as TransE"
        )
    return entities, relations


def _read_npz(path: Path, where: str) -> tuple[NamedVectors, NamedVectors]:
    with zipfile.ZipFile(path):  # numpy would take another file for a pickle, and say so
        pass
    with np.load(path, allow_pickle=False) as archive:

        def ids_of(kind: Kind) -> list[str] | None:
            if kind.ids not in archive.files:
                return None
            try:
                ids = archive[kind.ids]
            except ValueError as error:
                raise UserError(f"{where}: {kind.ids}: {error}; write it as numpy.array(ids, dtype=str)") from None
            if ids.ndim != 1 or ids.dtype.kind not in "US":
                raise UserError(
                    f"{where}: {kind.ids} is {ids.dtype} {list(ids.shape)}; write it as numpy.array(ids, dtype=str)"
                )
            return ids.astype(str).tolist()

        def vectors_of(name: str) -> Tensor:
            array = archive[name]
            if not isinstance(array, np.ndarray):
                raise UserError(f"{where}: {name} is no array; write the file with numpy.savez")
            if array.dtype.kind not in "fc" or array.dtype.itemsize > 16 or array.dtype == np.longdouble:
                raise UserError(f"{where}: {name} is {array.dtype}; write an array of float32")
            return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))

        entities, relations = (
            _named(kind, archive.files, vectors_of, ids_of(kind), path, where) for kind in (ENTITIES, RELATIONS)
        )
        return entities, relations


def _read_safetensors(path: Path, where: str) -> tuple[NamedVectors, NamedVectors]:
    with safe_open(path, "pt") as file:
        about: dict[str, str] = file.metadata() or {}
        if (method := about.get("method", TRANSLATION).lower()) != TRANSLATION:
            raise UserError(
                f"{where}: holds vectors of {method}, for which v_tail = v_head + v_relation does not hold; train it "
                f"with `trelm vectors train --method {TRANSLATION}`"
            )

        def ids_of(kind: Kind) -> list[str] | None:
            if kind.ids not in file.keys():  # noqa: SIM118  # no mapping
                return about[kind.ids].splitlines() if kind.ids in about else None
            numbers = file.get_tensor(kind.ids)
            if numbers.dtype not in _INTEGERS or numbers.ndim != 1:
                shape = f"{str(numbers.dtype).removeprefix('torch.')} {list(numbers.shape)}"
                raise UserError(f"{where}: {kind.ids} is {shape}; write numbers, 42 for {kind.letter}42, as int64 [n]")
            return [f"{kind.letter}{number}" for number in numbers.tolist()]

        entities, relations = (
            _named(kind, file.keys(), file.get_tensor, ids_of(kind), path, where) for kind in (ENTITIES, RELATIONS)
        )
        return entities, relations


def _named(
    kind: Kind, arrays: Iterable[str], vectors_of: Callable[[str], Any], ids: list[str] | None, path: Path, where: str
) -> NamedVectors:
    """Find the vectors of a kind among a file's arrays and give each row its number."""
    held = sorted(arrays)
    found = [name for name in held if name in (kind.vectors, kind.pykeen) or name.endswith(kind.dglke)]
    if len(found) != 1:
        names = [" ".join(visible(name).split())[:60] for name in held[:6]]
        listed = ", ".join(names) + (", ..." if len(held) > 6 else "") or "nothing"
        problem = "which of them is" if found else "none of which is known as"
        raise UserError(f"{where}: holds {listed}; {problem} the vectors of {kind.noun}? Name it {kind.vectors}")
    vectors: Tensor = vectors_of(found[0])
    shape = list(vectors.shape)
    if vectors.dtype not in _FLOATS or len(shape) != 2 or 0 in shape:
        dtype = str(vectors.dtype).removeprefix("torch.")
        advice = "; vectors of a complex model do not fit the rule of TransE" if vectors.is_complex() else ""
        raise UserError(f"{where}: {found[0]} is {dtype} {shape}, expected real numbers [{kind.noun}, width]{advice}")
    if ids is None:
        ids, place = _ids_beside(kind, path.parent, len(vectors), where)
    else:
        place = f"{where}: {kind.ids}"
    if (named := sum(map(bool, ids))) != len(vectors) or len(ids) != named:
        # PyKEEN's create_inverse_triples: row 2 r is relation r, row 2 r + 1 its inverse, and only r has an id.
        twice = kind is RELATIONS and len(vectors) == 2 * named
        advice = "keep rows [::2], without PyKEEN's inverse relations" if twice else "write both from the same model"
        raise UserError(f"{place}: names {named:,} rows of {len(vectors):,} vectors of {kind.noun}; {advice}")
    form = re.compile(f"{kind.letter}([0-9]{{1,18}})")
    numbers = np.array([int(match[1]) if (match := form.fullmatch(name)) else -1 for name in ids], dtype=np.int64)
    distinct, count = np.unique(numbers[numbers >= 0], return_counts=True)
    if (count > 1).any():
        twice_named = f"{kind.letter}{distinct[np.argmax(count > 1)]}"
        raise UserError(f"{place}: {twice_named} stands twice; leave one vector of each id")
    return NamedVectors(vectors, numbers, ids[0])


def _ids_beside(kind: Kind, folder: Path, n_rows: int, where: str) -> tuple[list[str], str]:
    """Read the ids of n rows from the table beside the vectors, "" for a row that it does not name; and its path."""
    found = [path for name in kind.tables if (path := folder / name).is_file()]
    if len(found) != 1:
        held = "several of" if found else "none of"
        raise UserError(
            f"{where}: has no {kind.ids}, and beside it lie {held} {', '.join(kind.tables)}; one must say which "
            f"row is which of the {kind.noun}"
        )
    path, ids = found[0], [""] * n_rows
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                cells = line.rstrip("\r\n").split("\t")
                if number == 1 and cells == ["id", "label"]:
                    continue
                row = int(cells[0]) if len(cells) == 2 and re.fullmatch("[0-9]{1,18}", cells[0]) else n_rows
                if row >= n_rows or ids[row] or not cells[1]:
                    expected = f"a row below {n_rows:,} that is not named yet, a tab, an id such as {kind.letter}42"
                    raise UserError(f"{path}:{number}: expected {expected}, got '{line.strip()[:60]}'")
                ids[row] = cells[1]
    except UserError:
        raise
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); write it again") from None
    return ids, str(path)
