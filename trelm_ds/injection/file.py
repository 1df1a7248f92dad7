"""Source `file`: a .npy of vectors in the order of the dataset's graph."""

from __future__ import annotations

import tokenize
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trelm_ds.errors import UserError
from trelm_ds.injection.projection import is_sound, projection_for
from trelm_ds.injection.source import InjectionSource, SourceContext


class VectorFile(InjectionSource):
    """Vectors of `injection.file`, taken as they are, or projected to D."""

    refreshes = False
    translates = True

    def __init__(self, context: SourceContext) -> None:
        index, path = context.index, Path(context.settings.file or "")
        n_entities, n_relations = len(index.graph.entities), len(index.graph.relations)
        rows = np.concatenate([index.vector_entities, n_entities + np.arange(index.n_relations)])
        has = np.ones(len(index.vector_entities), dtype=bool)
        self._vectors_of = vectors_from_file(
            path, n_entities, n_relations, rows, lambda width, read: projection_for(context, width, has, read)
        )

    def __call__(self, rows: Tensor) -> Tensor:
        return self._vectors_of(rows)


def vectors_from_file(
    path: Path,
    n_entities: int,
    n_relations: int,
    rows: np.ndarray,
    project: Callable[[int, Callable[[np.ndarray], np.ndarray]], np.ndarray | None],
) -> Callable[[Tensor], Tensor]:
    """Open vectors that a KG-embedding library made; they stay on disk, memory-mapped, and are projected to D.

    Args:
        path: .npy, float16, 32 or 64 [n_entities + n_relations, any width].
        n_entities, n_relations: of the graph.
        rows: int64 [R], the row in the file of each row of the table.
        project: given their width W, and what reads float32 [n, W] for rows of the table, int64 [n], returns the map
            [W, D]; None for none.

    Returns:
        A function from rows of the table, int64 [n], to float32 [n, D]. It raises `UserError` where one is not finite.

    Raises:
        UserError: the file cannot be read or has another shape or type.
    """
    where = f"injection.file {path}"
    expected = f"{n_entities:,} entities + {n_relations:,} relations"
    try:
        table = np.lib.format.open_memmap(path, mode="r")  # refuses pickled objects
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror or error}") from None
    except (ValueError, OverflowError, tokenize.TokenError) as error:  # the latter two: numpy's, of damaged headers
        reason = str(error).splitlines()[0]
        raise UserError(f"{where}: not a .npy file of numbers ({reason}); write it with numpy.save") from None
    if table.dtype.kind != "f" or table.dtype.itemsize not in (2, 4, 8):
        raise UserError(f"{where}: is {table.dtype}; write an array of float16, float32 or float64 with numpy.save")
    if table.ndim != 2 or len(table) != n_entities + n_relations or not table.shape[1]:
        shape = list(table.shape)
        raise UserError(f"{where}: has shape {shape}; this dataset needs one row for each of {expected}, in that order")

    def read(wanted: np.ndarray) -> np.ndarray:
        numbers = rows[wanted]
        with np.errstate(over="ignore"):  # becomes infinite, and is found below
            values = table[numbers].astype(np.float32)
        if not (sound := is_sound(values)).all():
            row = int(numbers[np.argmin(sound)])
            raise UserError(f"{where}: row {row}, counted from 0, is not finite in float32, or beyond any use; mend it")
        return np.asarray(values)

    matrix = project(table.shape[1], read)

    def vectors_of(wanted: Tensor) -> Tensor:
        values = read(wanted.numpy())
        return torch.from_numpy(values if matrix is None else values @ matrix)

    return vectors_of
