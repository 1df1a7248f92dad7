"""Made graphs, and datasets with nothing but one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trelm_ds.corpus import GRAPH_FOLDER
from trelm_ds.kg_embedding import VectorOptions
from trelm_ds.knowledge import KnowledgeGraph
from trelm_ds.shards import Manifest

SIDE = 8
SHIFTS = [(0, 1), (1, 0), (1, 1), (0, 2), (2, 1)]  # relations P1, P2 ...


def graph_of(*triples: tuple[int, int, int]) -> KnowledgeGraph:
    return KnowledgeGraph.from_triples(np.unique(np.array(triples, dtype=np.int32), axis=0))


def torus() -> KnowledgeGraph:
    """Points of a grid that is closed in both directions, Q100 on, related by shifts: translations, and rotations."""

    def point(x: int, y: int) -> int:
        return 100 + (x % SIDE) * SIDE + y % SIDE

    cells = [(x, y) for x in range(SIDE) for y in range(SIDE)]
    shifts = list(enumerate(SHIFTS, 1))
    return graph_of(*((point(x, y), number, point(x + a, y + b)) for x, y in cells for number, (a, b) in shifts))


def grid() -> KnowledgeGraph:
    """The same without the shifts across the border: translations alone."""
    cells = [(x, y) for x in range(SIDE) for y in range(SIDE)]
    shifts = list(enumerate(SHIFTS, 1))
    return graph_of(
        *(
            (100 + x * SIDE + y, number, 100 + (x + a) * SIDE + y + b)
            for x, y in cells
            for number, (a, b) in shifts
            if x + a < SIDE and y + b < SIDE
        )
    )


def dataset_of(graph: KnowledgeGraph, folder: Path) -> Path:
    """A folder that `trelm vectors train` takes for a dataset."""
    graph.save(folder / GRAPH_FOLDER)
    Manifest({"vocab_size": 1}, max_length=1, request={}, counts={}).save(folder)
    return folder


def options(dataset: Path, out: Path, **changes: Any) -> VectorOptions:
    small = {"dim": 16, "batch_size": 64, "chunk_size": 16, "negatives": 32, "epochs": 12.0, "eval_every": 4.0}
    small |= {"valid_share": 0.05, "margin": 4.0}
    return VectorOptions(dataset, out, work=out.with_suffix(".work"), **small | changes)
