"""The integral over alpha of Eq. 10 as a weighted sum over nodes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Quadrature(NamedTuple):
    """Nodes and weights on [0, 1]; m of each, the weights add up to 1."""

    nodes: tuple[float, ...]
    weights: tuple[float, ...]


def right_riemann(m: int) -> Quadrature:
    """Return the nodes 1/m, 2/m, ... 1 with equal weights (Eq. 11)."""
    return Quadrature(tuple(k / m for k in range(1, m + 1)), (1 / m,) * m)


def gauss_legendre(m: int) -> Quadrature:
    """Return nodes and weights that are exact for polynomials up to degree 2m - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(m)
    return Quadrature(tuple(((nodes + 1) / 2).tolist()), tuple((weights / 2).tolist()))


QUADRATURES = {"gauss3": gauss_legendre(3), "right20": right_riemann(20)}
