"""Dynamic knowledge routing (paper 3.3): which neurons hold the assessed facts, and updating only those."""

from trelm_ds.routing.adamw import LazyAdamW
from trelm_ds.routing.attribution import NeuronScores, attribute, frozen, no_scores
from trelm_ds.routing.explain import Explanation, explain, plot, table, to_json
from trelm_ds.routing.paths import FILE as PATHS_FILE
from trelm_ds.routing.paths import FOLDER as ROUTING_FOLDER
from trelm_ds.routing.paths import NEURONS as NEURONS_TABLE
from trelm_ds.routing.paths import (
    KnowledgePaths,
    first_layer,
    first_neurons,
    path_size,
    read_paths,
    save_paths,
    updated_part,
)
from trelm_ds.routing.quadrature import QUADRATURES, Quadrature, gauss_legendre, right_riemann
from trelm_ds.routing.sample import routed_facts

__all__ = [
    "NEURONS_TABLE",
    "PATHS_FILE",
    "QUADRATURES",
    "ROUTING_FOLDER",
    "Explanation",
    "KnowledgePaths",
    "LazyAdamW",
    "NeuronScores",
    "Quadrature",
    "attribute",
    "explain",
    "first_layer",
    "first_neurons",
    "frozen",
    "gauss_legendre",
    "no_scores",
    "path_size",
    "plot",
    "read_paths",
    "right_riemann",
    "routed_facts",
    "save_paths",
    "table",
    "to_json",
    "updated_part",
]
