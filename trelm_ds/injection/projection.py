"""Linear maps from a file's vectors to the width of word embeddings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from trelm_ds.errors import UserError
from trelm_ds.injection.source import SourceContext
from trelm_ds.knowledge.tables import token_means

_SAMPLE = 50_000  # entities that a map is fitted to
_RIDGE = 0.01  # of the mean variance of a coordinate
_LARGEST = 1e32  # sums of products of such numbers and an orthonormal matrix are finite in float32


def projection(width: int, size: int, seed: int) -> np.ndarray | None:
    """Draw one random linear map from `width` to `size` numbers; None where they are equal.

    It is linear, so that v_tail = v_head + v_relation survives; inner products do too where the vectors are no wider
    than `size`.

    Returns:
        float32 [width, size] with orthonormal columns, or rows where it is wider than high.
    """
    if width == size:
        return None
    normal = np.random.default_rng(seed).standard_normal((max(width, size), min(width, size)))
    q, r = np.linalg.qr(normal)
    q = q * np.sign(np.diagonal(r))  # else the signs are the LAPACK's choice, which ranks may differ in
    return np.ascontiguousarray(q if width >= size else q.T, dtype=np.float32)


def projection_for(
    context: SourceContext, width: int, has: np.ndarray, read: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray | None:
    """Choose the map that `injection.projection` asks for.

    Args:
        width: W, of the file's vectors.
        has: bool [V_e], which entities of the table have a vector.
        read: gives the vectors, float32 [n, W], of entities of the table, int64 [n].

    Returns:
        float32 [W, D]; None for none.

    Raises:
        UserError: fitted, but no entity has both a vector and a name.
    """
    if context.settings.projection != "fitted":
        return projection(width, context.size, context.seed)
    names, rows = context.index.names, np.asarray(context.index.vector_entities)
    usable = np.flatnonzero(has & (np.diff(names.entity_offsets)[rows] > 0))
    if not len(usable):
        raise UserError("injection.projection: fitted, but no entity has a vector and a name; take trained or fixed")
    sample = usable[:: -(-len(usable) // _SAMPLE)]
    words = token_means(context.word, names.entity_offsets, names.entity_tokens)(torch.from_numpy(rows[sample]))
    return fitted_map(read(sample), words.cpu().numpy())


def fitted_map(vectors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Find the linear map that brings vectors nearest to words, both about their means (ridge regression).

    It has no offset, so that v_tail = v_head + v_relation survives.

    Args:
        vectors: float [n, W].
        words: float [n, D].

    Returns:
        float32 [W, D].
    """
    inputs, targets = (values.astype(np.float64) - values.mean(axis=0, dtype=np.float64) for values in (vectors, words))
    gram = inputs.T @ inputs
    ridge = max(_RIDGE * np.trace(gram) / len(gram), np.finfo(np.float64).tiny)
    found = np.linalg.solve(gram + ridge * np.eye(len(gram)), inputs.T @ targets)
    return np.ascontiguousarray(found, dtype=np.float32)


def is_sound(values: np.ndarray) -> np.ndarray:
    """Mark the rows of float32 [n, W] that are finite and small enough to stay so when they are projected: bool [n]."""
    return np.asarray((np.abs(values) < _LARGEST).all(axis=1))
