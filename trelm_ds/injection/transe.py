"""Source `transe`: vectors that a KG-embedding library trained, found by id instead of by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trelm_ds.errors import UserError
from trelm_ds.injection.kg_file import ENTITIES, RELATIONS, Kind, NamedVectors, read_kg_file
from trelm_ds.injection.projection import is_sound, projection_for
from trelm_ds.injection.source import InjectionSource, SourceContext

_SAMPLE = 10_000  # entities whose mean stands for those without a vector


class TransE(InjectionSource):
    """Vectors of `injection.file`, .npz or .safetensors, for which v_tail = v_head + v_relation; projected to D.

    An entity that the file lacks gets the mean of the others, which says nothing about it, and a relation 0: the
    injected embedding is then the other entity's vector. `describe` counts both.
    """

    refreshes = False
    translates = True

    def __init__(self, context: SourceContext) -> None:
        index = context.index
        self._where = f"injection.file {context.settings.file}"
        entities, relations = read_kg_file(Path(context.settings.file or ""))
        entity_numbers = index.graph.entities[index.vector_entities]
        self._entities = _Rows(ENTITIES, entities, entity_numbers, self._where)
        self._relations = _Rows(RELATIONS, relations, index.graph.relations[: index.n_relations], self._where)
        self._entities.stand_in = self._entities.mean()
        has = self._entities.rows >= 0
        self._matrix = projection_for(context, entities.vectors.shape[1], has, self._entities.read)

    def __call__(self, rows: Tensor) -> Tensor:
        table_rows, n_entities = rows.numpy(), len(self._entities.rows)
        is_entity = table_rows < n_entities
        values = np.empty((len(table_rows), len(self._entities.stand_in)), dtype=np.float32)
        values[is_entity] = self._entities.read(table_rows[is_entity])
        values[~is_entity] = self._relations.read(table_rows[~is_entity] - n_entities)
        return torch.from_numpy(values if self._matrix is None else values @ self._matrix)

    def describe(self) -> str:
        parts = (self._entities, self._relations)
        if not any(part.n_missing for part in parts):
            return f"{self._where} has all {' and '.join(part.count for part in parts)}"
        missing = " and ".join(f"{part.n_missing:,} of {part.count}" for part in parts)
        return (
            f"{missing} have no vector in {self._where}; the mean of the others stands for such an entity, 0 for "
            "such a relation"
        )


class _Rows:
    """The entities or the relations of the table in the file.

    Attributes:
        rows: int64 [m], the row in the file of each of the table; -1 where the file has none.
        stand_in: float32 [W], the vector of those without one.
    """

    def __init__(self, kind: Kind, file: NamedVectors, wanted: np.ndarray, where: str) -> None:
        """Find the numbers `wanted`, int [m], in a file; raises `UserError` if it has none of them."""
        self._kind, self._vectors, self._wanted, self._where = kind, file.vectors, wanted, where
        order = np.argsort(file.numbers)
        place = np.minimum(np.searchsorted(file.numbers, wanted, sorter=order), len(order) - 1)
        found = order[place]
        self.rows = np.where(file.numbers[found] == wanted, found, -1)
        self.stand_in = np.zeros(file.vectors.shape[1], dtype=np.float32)
        if len(wanted) and self.n_missing == len(wanted):
            raise UserError(
                f"{where}: has none of the dataset's {len(wanted):,} {kind.noun}, such as {kind.letter}{wanted[0]}; it "
                f"names {file.example}. Train on the dataset's graph, with Wikidata's ids"
            )

    @property
    def n_missing(self) -> int:
        """Rows without a vector."""
        return int((self.rows < 0).sum())

    @property
    def count(self) -> str:
        """All rows, for people."""
        return f"{len(self.rows):,} {self._kind.noun}"

    def mean(self) -> np.ndarray:
        """The mean of up to 10,000 of those that have a vector, the same on every rank; `stand_in` if none is missing.

        Returns:
            float32 [W].
        """
        if not self.n_missing:
            return self.stand_in
        known = np.flatnonzero(self.rows >= 0)
        sample = known[:: -(-len(known) // _SAMPLE)]
        return self.read(sample).mean(axis=0, dtype=np.float64).astype(np.float32)

    def read(self, places: np.ndarray) -> np.ndarray:
        """Read float32 [n, W] for rows of the table, counted within this kind, int [n].

        Raises:
            UserError: a vector is not finite.
        """
        rows = self.rows[places]
        known = rows >= 0
        values = np.tile(self.stand_in, (len(rows), 1))
        values[known] = self._vectors[torch.from_numpy(rows[known])].float().numpy()
        if not (sound := is_sound(values)).all():
            number = self._wanted[places[np.argmin(sound)]]
            raise UserError(
                f"{self._where}: the vector of {self._kind.letter}{number} is not finite in float32, or "
                "beyond any use; mend it"
            )
        return values
