"""Dynamic knowledge routing (paper 3.3): which neurons hold the assessed facts, and updating only those."""

from trelm_ds.routing.adamw import LazyAdamW
from trelm_ds.routing.attribution import Documents, Scores, attribute, frozen, no_scores
from trelm_ds.routing.explain import Explanation, explain, plot, table, to_json
from trelm_ds.routing.paths import KnowledgePaths, first_layer, read_paths, save_paths
from trelm_ds.routing.quadrature import QUADRATURES, Quadrature, gauss_legendre, right_riemann

__all__ = [
    "QUADRATURES",
    "Documents",
    "Explanation",
    "KnowledgePaths",
    "LazyAdamW",
    "Quadrature",
    "Scores",
    "attribute",
    "explain",
    "first_layer",
    "frozen",
    "gauss_legendre",
    "no_scores",
    "plot",
    "read_paths",
    "right_riemann",
    "save_paths",
    "table",
    "to_json",
]
