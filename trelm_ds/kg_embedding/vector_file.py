"""The result: one .safetensors file with vectors and ids, written in blocks, so that no rank holds all of it.

`entity_vectors`, `relation_vectors`: float32 [n, D]. `entity_ids`, `relation_ids`: int64 [n], 42 for Q42 or P42. These
are arrays and not text in the metadata, because safetensors limits its header to 100 MB: some eight million ids.
"""

from __future__ import annotations

import json
import os
import secrets
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from trelm_ds.distributed import Ranks
from trelm_ds.errors import UserError
from trelm_ds.files import fsync_path
from trelm_ds.kg_embedding.scores import Method
from trelm_ds.kg_embedding.updates import Embeddings

ABOUT = "trelm_vectors"  # the metadata's entry with everything about the training, JSON


def write_vectors(
    path: Path,
    embeddings: Embeddings,
    method: Method,
    ids: tuple[np.ndarray, np.ndarray],
    trained: tuple[np.ndarray, np.ndarray],
    about: dict[str, Any],
    ranks: Ranks,
) -> None:
    """Write the vectors of all entities and relations that were trained; collective.

    Args:
        ids: numbers of the E entities and R relations.
        trained: bool [E], bool [R]; the others are left out.
        about: for the metadata, beside the name of the method.

    Raises:
        UserError: the file cannot be written; what was there before stays.
    """
    width, counts = embeddings.table.width, [int(rows.sum()) for rows in trained]
    arrays = {
        "entity_vectors": ("F32", [counts[0], width], 4),
        "relation_vectors": ("F32", [counts[1], width], 4),
        "entity_ids": ("I64", [counts[0]], 8),
        "relation_ids": ("I64", [counts[1]], 8),
    }
    header = _header(arrays, {"method": method.name, ABOUT: json.dumps(about)})
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    first = ranks.rank == 0
    stream = ranks.all_agree(lambda: _open(temporary, path) if first else None)
    failed: OSError | None = None
    try:
        for block in _content(header, embeddings, method, ids, trained):
            try:
                if stream is not None and failed is None:
                    stream.write(block)
            except OSError as error:  # the other ranks are still sending their rows; they hear of it below
                failed = error
        ranks.all_agree(lambda: _finish(stream, temporary, path, failed))
    finally:
        if stream is not None:
            stream.close()
            temporary.unlink(missing_ok=True)


def _content(
    header: bytes,
    embeddings: Embeddings,
    method: Method,
    ids: tuple[np.ndarray, np.ndarray],
    trained: tuple[np.ndarray, np.ndarray],
) -> Iterator[bytes]:
    """Yield the file's bytes on rank 0, and nothing of use on the others, in as many pieces."""
    yield header
    for kind, first, number in (
        (0, 0, embeddings.n_entities),
        (1, embeddings.n_entities, embeddings.n_relations),
    ):
        done = 0
        for rows in embeddings.blocks(first, number):
            values = (method.relations_of(rows) if kind else rows)[
                torch.from_numpy(trained[kind][done : done + len(rows)])
            ]
            done += len(rows)
            yield values.numpy().astype("<f4", copy=False).tobytes()
    for numbers, kept in zip(ids, trained, strict=True):
        yield numbers[kept].astype("<i8").tobytes()


def _header(arrays: dict[str, tuple[str, list[int], int]], metadata: dict[str, str]) -> bytes:
    """Return what stands before the data of a .safetensors file: the header's length and JSON, padded to 8 bytes."""
    content: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape, size) in arrays.items():
        start, end = end, end + int(np.prod(shape)) * size
        content[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _open(temporary: Path, path: Path) -> IO[bytes]:
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):  # of a process that was killed
        leftover.unlink(missing_ok=True)
    return temporary.open("wb")


def _finish(stream: IO[bytes] | None, temporary: Path, path: Path, failed: OSError | None) -> None:
    if stream is None:
        return
    try:
        if failed is not None:
            raise failed
        stream.flush()
        os.fsync(stream.fileno())
        temporary.replace(path)
        fsync_path(path.parent)
    except OSError as error:
        raise UserError.because(f"--out: {path} cannot be written: {error.strerror}", error) from None


def read_about(path: Path) -> dict[str, Any] | None:
    """Read what a file says about its training; None where there is no file.

    Raises:
        UserError: it is not a file of this program.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            found = json.loads((file.metadata() or {})[ABOUT])
    except (OSError, SafetensorError, KeyError, ValueError):
        found = None
    if not isinstance(found, dict) or not {"settings", "result"} <= found.keys():
        raise UserError(f"--out: {path} is there, and not of `trelm vectors train`; choose another")
    return found
