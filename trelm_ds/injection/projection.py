"""Vectors of another width than the model's."""

from __future__ import annotations

import numpy as np

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


def is_sound(values: np.ndarray) -> np.ndarray:
    """Mark the rows of float32 [n, W] that are finite and small enough to stay so when they are projected: bool [n]."""
    return np.asarray((np.abs(values) < _LARGEST).all(axis=1))
