"""Groups of facts that are also scored apart: how often the corpus mentions the subject, what its graph says.

A grouping gives a probe the name of its group, or None. Fields of the data's own records, such as `tier`, are groupings
too (`data.GROUPINGS`). Each is reported as `groups[grouping][group]` of its part.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from trelm_ds.corpus import GRAPH_FOLDER
from trelm_ds.errors import UserError
from trelm_ds.evaluation.lama.probes import Probe
from trelm_ds.importance import load_frequencies
from trelm_ds.knowledge import KnowledgeGraph, read_held_out
from trelm_ds.shards import HELD_OUT_FACTS

Grouping = Callable[[Probe], str | None]
TRAINED, HELD_OUT, DERIVABLE, UNKNOWN = ("trained", "held_out", "derivable", "unknown")


def subject_frequency(dataset: Path) -> Grouping:
    """Group facts by how often a dataset mentions the subject: `long_tail` if less often than its mean entity.

    That is the long tail of training (paper 3.2); the others are `frequent`. A subject that the corpus never mentions
    is in the long tail, one without a Wikidata id in neither group.

    Args:
        dataset: folder of `trelm prepare`.

    Raises:
        UserError: the folder is no prepared dataset.
    """
    _check_prepared(dataset)
    frequencies = load_frequencies(dataset)

    def group(probe: Probe) -> str | None:
        if probe.fact.qid is None:
            return None
        count = frequencies.lookup(np.array([probe.fact.qid]), frequencies.counts)[0]
        return "long_tail" if count < frequencies.mean else "frequent"

    return group


def graph_membership(dataset: Path) -> Grouping:
    """Group facts by what a dataset's graph, from which a model was trained, says of them.

    - `trained`: the fact is in the graph;
    - `held_out`: `trelm prepare --hold-out-facts` took it out;
    - `derivable`: likewise, but another fact connects its two entities, in either direction, such as an inverse;
    - `unknown`: neither in the graph nor held out.

    A fact whose subject, relation or object has no Wikidata id is in no group.

    Args:
        dataset: folder of `trelm prepare`.

    Raises:
        UserError: the folder is no prepared dataset, or its files are damaged.
    """
    _check_prepared(dataset)
    graph = KnowledgeGraph.load(dataset / GRAPH_FOLDER)
    path = dataset / HELD_OUT_FACTS
    held_out = set(map(tuple, read_held_out(path).tolist())) if path.is_file() else set()

    def group(probe: Probe) -> str | None:
        head, relation, tail = probe.fact.qid, probe.relation.pid, probe.fact.object_qid
        if head is None or relation is None or tail is None:
            return None
        fact = (head, relation, tail)
        if max(fact) > np.iinfo(np.int32).max:  # no graph has such ids
            return UNKNOWN
        triple = np.array([fact], dtype=np.int32)
        if graph.find(triple)[0] >= 0:
            return TRAINED
        if fact not in held_out:
            return UNKNOWN
        return DERIVABLE if graph.connects(triple[:, 0], triple[:, 2])[0] else HELD_OUT

    return group


def _check_prepared(dataset: Path) -> None:
    if not (dataset / "manifest.json").is_file():
        raise UserError(
            f"--dataset: {dataset} is no prepared dataset (no manifest.json); give a folder of `trelm prepare`"
        )


def apply(groupings: dict[str, Grouping], probes: list[Probe]) -> None:
    """Put every probe into its groups."""
    for name, grouping in groupings.items():
        for probe in probes:
            if (group := grouping(probe)) is not None:
                probe.groups[name] = group
