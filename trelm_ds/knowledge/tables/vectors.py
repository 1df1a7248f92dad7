"""Entity and relation vectors in word-embedding space, from which injected embeddings are computed (paper 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trelm_ds.errors import UserError
from trelm_ds.knowledge.tables.sharded_table import ShardedTable, TableGroup

_BATCH = 65536  # rows held in double precision at a time


class VectorTable(ShardedTable):
    """Vectors v [E + R, D] of E entities followed by R relations, sharded over the ranks.

    `fill` it from the encoder, from `mean_of_tokens` or from `vectors_from_file`, then `match` it to the words.

    Attributes:
        n_entities: E.
    """

    def __init__(
        self,
        n_entities: int,
        n_relations: int,
        size: int,
        dtype: torch.dtype,
        device: torch.device,
        group: TableGroup,
    ) -> None:
        super().__init__(n_entities + n_relations, size, dtype, device, group)
        self.n_entities = n_entities

    def match(self, word_mean: Tensor, word_scale: float, centre_relations: bool = False) -> None:
        """Give the entities the mean and scale of the word embeddings; collective.

        Entities become a (v - mean of the entities) + word_mean, with a = word_scale / scale of the entities. Relations
        become a v without a shift, which preserves v_tail = v_head + v_relation: a relation is a difference of
        entities, from which any shift cancels.

        Args:
            word_mean, word_scale: `word_statistics` of the word embeddings, [D] and a number.
            centre_relations: subtract the relations' mean. Meant for vectors computed from relation names, whose mean
                is that of text in general: it would move v_tail - v_relation away from the words in one direction, and
                v_head + v_relation in the other.
        """
        entities, relations = self._parts()
        mean, scale = self._statistics(entities, self.n_entities)
        factor = word_scale / scale if scale else 1.0
        _affine(entities, mean, factor, word_mean.detach().cpu().double())
        shift = torch.zeros(self.width, dtype=torch.float64)
        centre = shift
        if centre_relations and self.n_rows - self.n_entities > 1:  # a single relation would become 0
            centre, _ = self._statistics(relations, self.n_rows - self.n_entities)
        _affine(relations, centre, factor, shift)

    def _parts(self) -> tuple[Tensor, Tensor]:
        """Return views of this rank's entities and relations."""
        own = len(range(self.group.rank, self.n_entities, self.group.world_size))
        return self.local[:own], self.local[own:]

    def _statistics(self, part: Tensor, n_rows: int) -> tuple[Tensor, float]:
        """Compute mean [D] and scale of the n_rows rows of which `part` is this rank's share; collective.

        In double precision, in which the sum of identical rows is exact and their scale exactly 0.
        """
        total = torch.zeros(self.width, dtype=torch.float64)
        for rows in part.split(_BATCH):
            total += rows.double().sum(0).cpu()
        mean = self.group.sum(total) / max(n_rows, 1)
        spread = torch.zeros(1, dtype=torch.float64)
        for rows in part.split(_BATCH):
            spread += (rows.double() - mean.to(rows.device)).square().sum().cpu()
        variance = float(self.group.sum(spread)) / max(n_rows * self.width, 1)
        return mean, variance**0.5


def _affine(part: Tensor, centre: Tensor, factor: float, shift: Tensor) -> None:
    """Compute factor (part - centre) + shift in place."""
    for rows in part.split(_BATCH):
        rows.copy_((rows.double() - centre.to(rows.device)) * factor + shift.to(rows.device))


def word_statistics(weight: Tensor) -> tuple[Tensor, float]:
    """Compute the mean, float32 [D], and the scale of a word-embedding matrix [V, D].

    The scale is the root mean square of all entries after centring each dimension.
    """
    weight = weight.detach().float()
    mean = weight.mean(0)
    return mean, float((weight - mean).square().mean().sqrt())


def mean_of_tokens(embed: Callable[[Tensor], Tensor], offsets: Tensor, tokens: Tensor) -> Tensor:
    """Average the word embeddings of n lists of tokens: for injection source alias_mean and for initial memories.

    Args:
        embed: maps distinct tokens, int64 [m] on the CPU, to their word embeddings [m, D]. Called exactly once, even
            with no tokens, since it is collective under ZeRO-3.
        offsets: int64 [n + 1] on the CPU, where each list starts in `tokens`.
        tokens: int64 [K] on the CPU.

    Returns:
        float32 [n, D] on the embeddings' device; 0 for an empty list.
    """
    distinct, index = torch.unique(tokens, return_inverse=True)
    rows = embed(distinct).detach().float()
    if not len(tokens):
        return rows.new_zeros(len(offsets) - 1, rows.shape[1])
    bags = offsets.to(rows.device)
    return F.embedding_bag(index.to(rows.device), rows, bags, mode="mean", include_last_offset=True)


def vectors_from_file(
    path: Path, n_entities: int, n_relations: int, rows: np.ndarray, size: int, seed: int
) -> Callable[[Tensor], Tensor]:
    """Open vectors made by a KG-embedding library (injection source file). They stay on disk, memory-mapped.

    Vectors of another width are projected by one random matrix with orthonormal rows or columns. A linear map preserves
    v_tail = v_head + v_relation; this one also preserves inner products if the vectors are no wider than D.

    Args:
        path: .npy of float16, float32 or float64 [n_entities + n_relations, any width].
        n_entities, n_relations: sizes of the graph.
        rows: int64 [R], the row in the file of each row of the table.
        size: D.
        seed: seed of the projection.

    Returns:
        the function for `VectorTable.fill`: maps rows of the table, int64 [n], to float32 [n, D]. It raises `UserError`
        for vectors that are not finite.

    Raises:
        UserError: the file cannot be read, or has the wrong shape or dtype.
    """
    where = f"injection.file {path}"
    expected = f"{n_entities:,} entities + {n_relations:,} relations"
    try:
        table = np.lib.format.open_memmap(path, mode="r")  # refuses pickled objects
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{where}: not a .npy file of numbers ({reason}); write it with numpy.save") from None
    if table.dtype.kind != "f" or table.dtype.itemsize not in (2, 4, 8):
        raise UserError(f"{where}: is {table.dtype}; write an array of float16, float32 or float64 with numpy.save")
    if table.ndim != 2 or len(table) != n_entities + n_relations or not table.shape[1]:
        shape = list(table.shape)
        raise UserError(f"{where}: has shape {shape}; this dataset needs one row for each of {expected}, in that order")
    projection = None if table.shape[1] == size else _projection(table.shape[1], size, seed)

    def vectors_of(wanted: Tensor) -> Tensor:
        numbers = rows[wanted.numpy()]
        with np.errstate(over="ignore"):  # float64 that overflows becomes infinite, which is reported below
            values = table[numbers].astype(np.float32)
        if not (sound := np.isfinite(values).all(axis=1)).all():
            row = int(numbers[np.argmin(sound)])
            raise UserError(f"{where}: row {row}, counted from 0, is not finite in float32; mend it")
        return torch.from_numpy(values if projection is None else values @ projection)

    return vectors_of


def _projection(width: int, size: int, seed: int) -> np.ndarray:
    """Draw a matrix float32 [width, size] with orthonormal columns, or rows if it is wider than high."""
    normal = np.random.default_rng(seed).standard_normal((max(width, size), min(width, size)))
    q, r = np.linalg.qr(normal)
    q = q * np.sign(np.diagonal(r))  # fixes the signs, which LAPACK may choose differently on different ranks
    return np.ascontiguousarray(q if width >= size else q.T, dtype=np.float32)
