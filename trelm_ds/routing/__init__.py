"""Dynamic knowledge routing (paper 3.3): which neurons hold the assessed facts, and updating only those."""

from trelm_ds.routing.attribution import Documents, Scores, attribute, frozen, no_scores
from trelm_ds.routing.quadrature import QUADRATURES, Quadrature, gauss_legendre, right_riemann

__all__ = [
    "QUADRATURES",
    "Documents",
    "Quadrature",
    "Scores",
    "attribute",
    "frozen",
    "gauss_legendre",
    "no_scores",
    "right_riemann",
]
