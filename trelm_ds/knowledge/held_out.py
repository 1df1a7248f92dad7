"""Triples held out of the graph, so that they can be probed without having been trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trelm_ds.files import write_atomically
from trelm_ds.keyed_random import Stream, keyed_uniform
from trelm_ds.knowledge.wikidata5m import GraphFile, read_triples


def draw_held_out(triples: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Draw a share of the triples, each on its own: whether one is held out depends on nothing but it, share and seed.

    So the draw depends neither on the files' order nor on the other triples, and a larger share contains a smaller one.

    Args:
        triples: int [N, 3], numbers of head, relation, tail.
        share: probability of each, 0 to 1.
        seed: at least 0.

    Returns:
        bool [N].
    """
    return keyed_uniform(Stream.HELD_OUT_FACT, seed, *triples.T) < share


def write_held_out(path: Path, triples: np.ndarray) -> None:
    """Write triples int [N, 3] as `Qh<TAB>Pr<TAB>Qt` lines, Wikidata5M's format."""
    write_atomically(path, "".join(f"Q{head}\tP{relation}\tQ{tail}\n" for head, relation, tail in triples.tolist()))


def read_held_out(path: Path) -> np.ndarray:
    """Read the distinct triples of a file in Wikidata5M's format, plain or compressed: int32 [N, 3], sorted.

    Raises:
        UserError: the file is missing, damaged or empty, or a line is malformed; names file and line.
    """
    return read_triples([GraphFile(path)])[0]
