"""Stage that makes the graph of the dataset, and takes out of it the triples that are to be held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trelm_ds import log
from trelm_ds.corpus.artifacts import Artifact, find, key_of, make, obtain
from trelm_ds.corpus.options import PrepareOptions
from trelm_ds.errors import UserError
from trelm_ds.knowledge import (
    KnowledgeGraph,
    Wikidata5M,
    draw_held_out,
    read_held_out,
    read_triples,
    write_held_out,
)
from trelm_ds.shards import HELD_OUT_FACTS

HELD_OUT_FOLDER = "held_out"  # in the artifact, beside the graph's arrays
HELD_OUT, ABSENT = "graph: facts held out", "graph: facts to hold out that are not in it"
DERIVABLE = "graph: facts held out, another fact connects the two"


def graph_arrays(
    files: Wikidata5M, hashes: list[str], hold_out: list[object], options: PrepareOptions, work: Path
) -> Artifact:
    """Find or make the artifact with the arrays of `KnowledgeGraph`.

    Everything after it reads this graph alone, so nothing that is made can depend on a triple that is held out.

    Args:
        files: the Wikidata5M files.
        hashes: sha256 of each file with triples.
        hold_out: what determines which triples are held out; empty if none are.
        options: say which those are.
        work: parent folder of the artifact.

    Raises:
        UserError: bad input (names file and line), or the triples to hold out are none or all.
    """
    members, budget = [file.member for file in files.triples], options.max_malformed
    folder, key = work / "graph", key_of("graph", hashes, members, budget, *([hold_out] if hold_out else []))
    artifact = find(folder, key)
    if artifact is None:
        with make(folder, key) as (made, notes):
            triples, repeated, malformed = read_triples(files.triples, budget)
            counts = {"graph: triples repeated": repeated, "graph: lines left out, malformed": malformed}
            if hold_out:
                triples, held_out, more = _hold_out(triples, options)
                (made / HELD_OUT_FOLDER).mkdir()
                write_held_out(made / HELD_OUT_FOLDER / HELD_OUT_FACTS, held_out)
                counts |= more
            graph = KnowledgeGraph.from_triples(triples)
            graph.save(made)
            notes["counts"] = counts | {
                "graph: triples": graph.n_triples,
                "graph: entities": len(graph.entities),
                "graph: relations": len(graph.relations),
            }
        artifact = obtain(folder, key)
    return artifact


def _hold_out(triples: np.ndarray, options: PrepareOptions) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Divide triples int32 [N, 3] into those that stay in the graph and those held out; count the latter."""
    counts = {}
    if options.hold_out_share is not None:
        chosen = draw_held_out(triples, options.hold_out_share, options.hold_out_seed or 0)
    else:
        assert options.hold_out_file is not None
        wanted = read_held_out(options.hold_out_file)
        place = KnowledgeGraph.from_triples(triples).find(wanted)
        chosen = np.zeros(len(triples), dtype=bool)
        chosen[place[place >= 0]] = True
        counts[ABSENT] = absent = int((place < 0).sum())
        if absent:
            log.warning(f"{options.hold_out_file}: {absent:,} of {len(wanted):,} triples are not in the graph")
    if not chosen.any() or chosen.all():
        which = "all" if chosen.any() else "none"
        raise UserError(f"--hold-out-facts: {options.hold_out_facts} holds out {which} of {len(triples):,} triples")
    kept, held_out = triples[~chosen], triples[chosen]
    derivable = KnowledgeGraph.from_triples(kept).connects(held_out[:, 0], held_out[:, 2])
    counts |= {HELD_OUT: len(held_out), DERIVABLE: int(derivable.sum())}
    log.info(f"{len(held_out):,} of {len(triples):,} triples are held out of the graph")
    return kept, held_out, counts
