"""Score functions of knowledge graph embeddings: how plausible a triple (head, relation, tail) is.

Every method splits its score into a query, made of the entity that is known and the relation, and a comparison of the
query with candidates for the other entity. Where that is a Euclidean distance or an inner product, a chunk of queries
against the candidates they share is one matrix product.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

_SMALLEST = 1e-12  # of a squared distance: its root has a gradient there


class Method(ABC):
    """One score function over rows of D numbers; n queries may have leading dimensions, such as chunks [G].

    Attributes:
        name: value of `--method`.
        margin: gamma where the command line says nothing.
        lr, regularization: of training, where the command line says nothing.
        is_distance: whether scores are negative distances, so that `--norm` and `--margin` apply.
        needs_even: whether D must be even.
    """

    name: ClassVar[str]
    margin: ClassVar[float]
    lr: ClassVar[float]
    regularization: ClassVar[float] = 0.0
    is_distance: ClassVar[bool] = True
    needs_even: ClassVar[bool] = False

    def __init__(self, norm: int = 2) -> None:
        self.norm = norm

    @abstractmethod
    def query(self, known: Tensor, relations: Tensor, tails: bool) -> Tensor:
        """Combine the known entities [..., n, D] with their relations [..., n, D] into queries [..., n, D].

        Args:
            tails: whether the tail is asked for and the head is known; else the other way round.
        """

    def pairs(self, queries: Tensor, entities: Tensor) -> Tensor:
        """Score each query [..., n, D] with the entity [..., n, D] beside it: [..., n]."""
        return -_length(queries - entities, self.norm)

    def scores(self, queries: Tensor, entities: Tensor) -> Tensor:
        """Score each query [..., n, D] with each of k entities [..., k, D]: [..., n, k]."""
        if self.norm == 1:
            return -torch.cdist(queries, entities, p=1.0)
        return -_distances(queries, entities)

    def spread(self, margin: float, dim: int) -> float:
        """Return the largest number of an untrained vector, so that untrained distances are about the margin."""
        return (margin + 2) / dim

    @property
    def pair_numbers(self) -> str:
        """What `scores` holds for each pair of query and entity: "1" number, or all "D" of their difference."""
        return "1"

    def relations_of(self, rows: Tensor) -> Tensor:
        """Turn trained rows [m, D] into the relations' vectors that the score uses, [m, D]."""
        return rows


class TransE(Method):
    """A relation translates the head to the tail: score = -||h + r - t||, L1 or L2 (Bordes et al. 2013, Eq. 1)."""

    name = "transe"
    margin = 12.0
    lr = 0.1

    def query(self, known: Tensor, relations: Tensor, tails: bool) -> Tensor:
        return known + relations if tails else known - relations


class DistMult(Method):
    """Score = sum_i h_i r_i t_i, the same in both directions (Yang et al. 2015, Eq. 4 with a diagonal matrix)."""

    name = "distmult"
    margin = 0.0
    lr = 0.1
    is_distance = False

    def query(self, known: Tensor, relations: Tensor, tails: bool) -> Tensor:
        return known * relations

    def pairs(self, queries: Tensor, entities: Tensor) -> Tensor:
        return (queries * entities).sum(-1)

    def scores(self, queries: Tensor, entities: Tensor) -> Tensor:
        return queries @ entities.mT


class RotatE(Method):
    """A relation turns the head's D/2 complex numbers: score = -||h o r - t||, |r_i| = 1 (Sun et al. 2019, Eq. 3).

    A row holds the real parts, then the imaginary ones. Relations are divided by their moduli wherever they are used,
    so that they stay on the unit circle. L1 is the sum of the moduli, as in the paper; L2 the Euclidean length.
    """

    name = "rotate"
    margin = 12.0
    lr = 0.1
    needs_even = True

    def query(self, known: Tensor, relations: Tensor, tails: bool) -> Tensor:
        (real, imaginary), (cosine, sine) = known.chunk(2, -1), self.relations_of(relations).chunk(2, -1)
        if not tails:  # |h o r - t| = |h - t o conj(r)|
            sine = -sine
        return torch.cat([real * cosine - imaginary * sine, real * sine + imaginary * cosine], -1)

    def pairs(self, queries: Tensor, entities: Tensor) -> Tensor:
        difference = queries - entities
        return -(_moduli(difference).sum(-1) if self.norm == 1 else _length(difference, 2))

    def scores(self, queries: Tensor, entities: Tensor) -> Tensor:
        if self.norm == 1:
            return -_moduli(queries[..., :, None, :] - entities[..., None, :, :]).sum(-1)
        return -_distances(queries, entities)

    @property
    def pair_numbers(self) -> str:
        return "D" if self.norm == 1 else "1"

    def relations_of(self, rows: Tensor) -> Tensor:
        moduli = _moduli(rows)
        return rows / torch.cat([moduli, moduli], -1)


METHODS: dict[str, type[Method]] = {method.name: method for method in (TransE, DistMult, RotatE)}


def _length(difference: Tensor, norm: int) -> Tensor:
    if norm == 1:
        return difference.abs().sum(-1)
    return difference.square().sum(-1).clamp_min(_SMALLEST).sqrt()


def _moduli(values: Tensor) -> Tensor:
    """Compute |z| of complex numbers: [..., D] to [..., D/2]."""
    real, imaginary = values.chunk(2, -1)
    return (real.square() + imaginary.square()).clamp_min(_SMALLEST).sqrt()


def _distances(queries: Tensor, entities: Tensor) -> Tensor:
    """Euclidean distances [..., n, k] by one matrix product: |q - e|^2 = |q|^2 + |e|^2 - 2 <q, e>."""
    lengths = queries.square().sum(-1)[..., :, None] + entities.square().sum(-1)[..., None, :]
    return (lengths - 2 * (queries @ entities.mT)).clamp_min(_SMALLEST).sqrt()
