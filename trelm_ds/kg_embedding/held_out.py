"""Triples that are not trained on, to evaluate with: a share of the graph's, or those of a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trelm_ds import log
from trelm_ds.errors import UserError
from trelm_ds.keyed_random import Stream, keyed_permutation, keyed_uniform
from trelm_ds.kg_embedding.batches import triples_of
from trelm_ds.knowledge import GraphFile, KnowledgeGraph, read_triples

SPLITS = ("valid", "test")


@dataclass(frozen=True)
class Split:
    """What is trained on, and what is held out.

    Attributes:
        train: int64 [n], positions of triples in `graph.out_entities`, ascending.
        held_out: "valid" and "test" -> int32 [m, 3], rows of head, relation and tail.
        beyond: int32 [k, 3], those of them that the graph lacks.
        entities, relations: bool [E], bool [R], which have a triple to train on.
    """

    train: np.ndarray
    held_out: dict[str, np.ndarray]
    beyond: np.ndarray
    entities: np.ndarray
    relations: np.ndarray


def split_graph(graph: KnowledgeGraph, seed: int, held: dict[str, float | Path]) -> Split:
    """Hold triples out of training.

    A share is drawn by the triple alone, among those whose entities and relation occur in other triples; one that would
    leave its entity or relation without any triple stays in training. Triples of a file that name an entity or a
    relation without a triple to train on cannot be ranked: they are left out, and counted in a warning.

    Args:
        held: by the name of the split, a share (0 for none) or a file, `Q1<TAB>P2<TAB>Q3` a line.

    Raises:
        UserError: the graph is empty, nothing is left to train on, a file cannot be read or has no usable triple.
    """
    if not graph.n_triples:
        raise UserError("the dataset's graph has no triple; prepare it with Wikidata5M's")
    split_of = np.zeros(graph.n_triples, dtype=np.int8)  # 0: train; else 1 + place in SPLITS
    _draw(graph, seed, [share if isinstance(share := held.get(name, 0.0), float) else 0.0 for name in SPLITS], split_of)
    files = {name: where for name in SPLITS if isinstance(where := held.get(name), Path)}
    named = {name: _read(path, name, graph) for name, path in files.items()}
    for name, (found, _) in named.items():
        edges = _edges_of(graph, found)
        split_of[edges[edges >= 0]] = 1 + SPLITS.index(name)
    train = np.flatnonzero(split_of == 0)
    if not len(train):
        raise UserError("--valid, --test: hold out every triple of the graph; nothing is left to train on")
    entities, relations = _trained(graph, train)
    held_out, beyond = {}, [np.zeros((0, 3), dtype=np.int32)]
    for place, name in enumerate(SPLITS, 1):
        if name in named:
            found, unknown = named[name]
            held_out[name] = _usable(found, unknown, entities, relations, name, files[name])
            beyond.append(found[_edges_of(graph, found) < 0])
        else:
            held_out[name] = np.stack(triples_of(graph, np.flatnonzero(split_of == place)), axis=1).astype(np.int32)
    return Split(train, held_out, np.concatenate(beyond), entities, relations)


def sample(triples: np.ndarray, number: int | None, seed: int) -> np.ndarray:
    """Return `number` of the triples [n, 3], chosen by the seed, or all of them."""
    if number is None or number >= len(triples):
        return triples
    return triples[np.sort(keyed_permutation(len(triples), seed, Stream.KG_EVALUATED)[:number])]


def _draw(graph: KnowledgeGraph, seed: int, shares: list[float], split_of: np.ndarray) -> None:
    """Draw the shares of the splits into `split_of`, int8 [n]."""
    if not any(shares):
        return
    heads, relations, tails = _all_rows(graph)
    uniform = keyed_uniform(
        seed, Stream.KG_HELD_OUT, graph.entities[heads], graph.relations[relations], graph.entities[tails]
    )
    times = _times(heads, tails, len(graph.entities))
    often = np.bincount(relations, minlength=len(graph.relations))
    usable = (times[heads] > 1) & (times[tails] > 1) & (often[relations] > 1)
    for place, bound in reversed(list(enumerate(np.cumsum(shares), 1))):
        split_of[usable & (uniform < bound)] = place
    entities, known = _trained(graph, np.flatnonzero(split_of == 0))
    split_of[~(entities[heads] & entities[tails] & known[relations])] = 0


def _all_rows(graph: KnowledgeGraph) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    heads = np.repeat(np.arange(len(graph.entities), dtype=np.int32), np.diff(graph.out_offsets))
    return heads, np.asarray(graph.out_relations), np.asarray(graph.out_entities)


def _times(heads: np.ndarray, tails: np.ndarray, n_entities: int) -> np.ndarray:
    """Count the triples of each entity; one that relates an entity to itself counts twice."""
    return np.bincount(heads, minlength=n_entities) + np.bincount(tails, minlength=n_entities)


def _trained(graph: KnowledgeGraph, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mark entities and relations that occur in the triples of these positions."""
    heads, relations, tails = triples_of(graph, train)
    entities, known = np.zeros(len(graph.entities), dtype=bool), np.zeros(len(graph.relations), dtype=bool)
    entities[heads] = entities[tails] = True
    known[relations] = True
    return entities, known


def _read(path: Path, name: str, graph: KnowledgeGraph) -> tuple[np.ndarray, int]:
    """Read a file's triples as rows int32 [n, 3]; and how many name an entity or relation that the graph lacks."""
    triples, _, _ = read_triples([GraphFile(path)])
    columns, known = [], np.ones(len(triples), dtype=bool)
    for column, numbers in enumerate((graph.entities, graph.relations, graph.entities)):
        row = np.minimum(np.searchsorted(numbers, triples[:, column]), len(numbers) - 1)
        known &= numbers[row] == triples[:, column]
        columns.append(row.astype(np.int32))
    if not known.any():
        head, relation, tail = triples[0].tolist()
        raise UserError(
            f"--{name} {path}: every triple has an entity or a relation that the dataset's graph lacks, such as "
            f"Q{head} P{relation} Q{tail}; give triples of the same Wikidata5M"
        )
    return np.stack(columns, axis=1)[known], int((~known).sum())


def _edges_of(graph: KnowledgeGraph, triples: np.ndarray) -> np.ndarray:
    """Return the position in the graph of each of the triples [m, 3], rows; -1 for one that it lacks: int64 [m]."""
    n_relations, n_entities = len(graph.relations), len(graph.entities)

    def key(heads: np.ndarray, relations: np.ndarray, tails: np.ndarray) -> np.ndarray:
        return (heads.astype(np.int64) * n_relations + relations) * n_entities + tails

    keys, wanted = key(*_all_rows(graph)), key(*triples.T)  # the graph's are ascending, as its triples are sorted
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)


def _usable(
    triples: np.ndarray, unknown: int, entities: np.ndarray, relations: np.ndarray, name: str, path: Path
) -> np.ndarray:
    good = entities[triples[:, 0]] & relations[triples[:, 1]] & entities[triples[:, 2]]
    only_here = len(np.unique(triples[:, [0, 2]][~entities[triples[:, [0, 2]]]]))
    no_relation = len(np.unique(triples[:, 1][~relations[triples[:, 1]]]))
    if dropped := int((~good).sum()) + unknown:
        log.warning_rank0(
            f"--{name} {path}: {dropped:,} of {len(triples) + unknown:,} triples cannot be ranked: {unknown:,} name "
            f"what the graph lacks, the others {only_here:,} entities and {no_relation:,} relations that occur only in "
            "held-out triples"
        )
    if not good.any():
        raise UserError(f"--{name} {path}: none of its triples can be ranked; give some whose entities are trained on")
    return triples[good]
