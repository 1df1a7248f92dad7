"""Reduce steps of entity linking: merge anchors and names into a dictionary, then occurrences to link probabilities."""

from __future__ import annotations

import heapq
import io
import itertools
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import marisa_trie
import numpy as np

from trelm_ds.corpus.linking.dictionary import LINK_PROBABILITY, LinkDictionary, write_manifest
from trelm_ds.corpus.linking.statistics import OccurrenceCounts, Row, anchors_file, load_links, read_rows, write_rows
from trelm_ds.corpus.linking.text import CASES, boundaries, is_phrase, phrase_of
from trelm_ds.errors import UserError
from trelm_ds.files import fsync_path, write_atomically
from trelm_ds.keyed_random import keyed_permutation
from trelm_ds.knowledge import KnowledgeGraph

_OPEN_FILES = 256  # runs merged at a time; the usual limit is 1,024 open files per process
_RUN = 2_000_000  # names sorted in memory at a time
_BUFFER = 20_000_000  # links held in memory before they are reduced to the sample of each entity
_DOCUMENT_ORDER = 0x11  # key of the random order of documents
ALIAS, LABEL = 1, 2
LABEL_WEIGHT = 4  # weight of a label relative to an alias
NAME_LINKS = 1.0  # pseudo-count of links for being a name, shared among all entities with that name
SMOOTHING = 1.0  # pseudo-count of documents for the prior link probability
RARE = 20  # the prior is estimated from names that occur in at most this many documents


@dataclass
class DictionaryOptions:
    """What enters a dictionary.

    Attributes:
        minimum_links: links required of a phrase that is not a name in Wikidata5M; a single one is often a mistake.
        minimum_name_length: characters required of a name without links; shorter ones are codes ("ca", "no").
        maximum_candidates: entities kept per phrase, the most common ones.
        sample: documents kept per entity for relatedness, whose error is proportional to 1 / sqrt(sample).
    """

    minimum_links: int = 2
    minimum_name_length: int = 3
    maximum_candidates: int = 16
    sample: int = 256


def build_dictionary(
    partials: Sequence[Path],
    names: Iterator[tuple[int, list[str]]],
    graph: KnowledgeGraph,
    folder: Path,
    options: DictionaryOptions | None = None,
) -> LinkDictionary:
    """Build a dictionary from the anchors of all chunks and the names of all entities (reduce 1).

    Commonness (Milne & Witten 2008) is the share of a phrase's links that go to a candidate. If the phrase is a name in
    Wikidata5M, `NAME_LINKS` links are added, shared among the entities with that name in proportion to 1 + triples,
    times `LABEL_WEIGHT` for a label. So names decide where there are no anchors, and hardly matter where there are.

    Memory: the list of phrases (about 75 bytes each) and 16 bytes per candidate; links and names are merged in runs.

    Args:
        partials: folders written by `AnchorCounts.save`, for any chunking and in any order.
        names: (QID number, names with the label first).
        graph: provides the number of triples and the edges between entities.
        folder: folder to create; it must not exist.

    Raises:
        UserError: a partial result is damaged, or there is nothing to put into the dictionary.
    """
    options = options or DictionaryOptions()
    work = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    try:
        runs = work / "runs"
        runs.mkdir(parents=True)
        anchors = _merged([anchors_file(partial) for partial in partials], runs, "anchors")
        named = _merged(_name_runs(names, runs), runs, "names")
        phrases, rows = _collect(anchors, named, options)
        if not phrases:
            raise UserError("entity linking: neither an anchor nor a name that could be a phrase")
        dictionary = _assemble(phrases, rows, partials, graph, options)
        dictionary.save(work / "dictionary")
        fsync_path(work / "dictionary")
        (work / "dictionary").rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return LinkDictionary.load(folder)


def _merged(paths: list[Path], folder: Path, name: str) -> Iterator[Row]:
    """Yield the rows of sorted files in sorted order; if there are too many to open, merge them into fewer first."""
    for level in itertools.count():
        if len(paths) <= _OPEN_FILES:
            break
        groups = [paths[first : first + _OPEN_FILES] for first in range(0, len(paths), _OPEN_FILES)]
        paths = [folder / f"{name}-{level}-{number}.tsv" for number in range(len(groups))]
        for group, path in zip(groups, paths, strict=True):
            write_rows(heapq.merge(*map(read_rows, group)), path)
    return heapq.merge(*map(read_rows, paths))


def _name_runs(names: Iterator[tuple[int, list[str]]], folder: Path) -> list[Path]:
    """Write sorted files of (phrase, QID number, LABEL or ALIAS)."""
    rows = (row for qid, spellings in names for row in _name_rows(qid, spellings))
    paths = list[Path]()
    while run := sorted(itertools.islice(rows, _RUN)):
        paths.append(folder / f"run-{len(paths)}.tsv")
        write_rows(run, paths[-1])
    return paths


def _name_rows(qid: int, spellings: list[str]) -> Iterator[Row]:
    """Yield one entity's names, without "the Red Sea" if there is also "Red Sea": anchors leave out the article."""
    phrases = list(map(phrase_of, spellings))
    known = set(phrases)
    for index, phrase in enumerate(phrases):
        if is_phrase(phrase) and not (phrase.startswith("the ") and phrase[4:] in known):
            yield phrase, qid, ALIAS if index else LABEL


def _collect(
    anchors: Iterator[Row], names: Iterator[Row], options: DictionaryOptions
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Select the phrases that enter the dictionary.

    Returns:
        the phrases, ascending, and their candidates as int32 columns: phrase (index), qid, links, kind (ALIAS, LABEL,
        or 0 for an entity that does not have the phrase as a name).
    """
    phrases = list[str]()
    columns = {name: array("i") for name in ("phrase", "qid", "links", "kind")}
    tagged = heapq.merge(((*row, 0) for row in anchors), ((*row, 1) for row in names))
    for phrase, group in itertools.groupby(tagged, key=itemgetter(0)):
        found: dict[int, list[int]] = {}
        for _, qid, value, is_name in group:
            entry = found.setdefault(qid, [0, 0])
            entry[is_name] = max(entry[1], value) if is_name else entry[0] + value
        links = sum(entry[0] for entry in found.values())
        is_named = any(entry[1] for entry in found.values())
        if links < options.minimum_links if not is_named else not links and len(phrase) < options.minimum_name_length:
            continue
        for qid, (times, kind) in found.items():
            for name, value in zip(columns, (len(phrases), qid, times, kind), strict=True):
                columns[name].append(value)
        phrases.append(phrase)
    return phrases, {name: np.array(values, dtype=np.int32) for name, values in columns.items()}


def _assemble(
    phrases: list[str],
    rows: dict[str, np.ndarray],
    partials: Sequence[Path],
    graph: KnowledgeGraph,
    options: DictionaryOptions,
) -> LinkDictionary:
    """Compute the arrays of a dictionary from what `_collect` returned."""
    trie = marisa_trie.Trie(phrases)
    ids = np.fromiter((trie[phrase] for phrase in phrases), dtype=np.int64, count=len(phrases))
    words = np.zeros(len(phrases), dtype=np.uint8)
    words[ids] = [min(len(boundaries(phrase)[0]), 255) for phrase in phrases]
    phrase = ids[rows["phrase"]]
    named = np.zeros(len(phrases), dtype=bool)
    named[phrase[rows["kind"] > 0]] = True
    commonness = _commonness(phrase, rows, graph, len(phrases))
    order = np.lexsort((rows["qid"], -commonness, phrase))
    starts = np.zeros(len(phrases) + 1, dtype=np.int64)
    np.cumsum(np.bincount(phrase, minlength=len(phrases)), out=starts[1:])
    order = order[np.arange(len(order)) - starts[phrase[order]] < options.maximum_candidates]
    offsets = np.zeros_like(starts)
    np.cumsum(np.bincount(phrase[order], minlength=len(phrases)), out=offsets[1:])
    qids = rows["qid"][order]
    linked = [np.unique(load_links(partial)[:, 1]) for partial in partials]
    entities = np.unique(np.concatenate([qids, *linked])).astype(np.int32)
    documents, counts, link_offsets, links = _links(partials, entities, options.sample)
    edge_offsets, edges = _edges(graph, entities)
    return LinkDictionary(
        phrases=trie,
        documents=documents,
        named=named,
        words=words,
        candidate_offsets=offsets,
        candidates=np.searchsorted(entities, qids).astype(np.int32),
        commonness=commonness[order].astype(np.float32),
        entities=entities,
        link_counts=counts,
        link_offsets=link_offsets,
        links=links,
        edge_offsets=edge_offsets,
        edges=edges,
    )


def _commonness(phrase: np.ndarray, rows: dict[str, np.ndarray], graph: KnowledgeGraph, size: int) -> np.ndarray:
    """Compute commonness, float64 [C]: links plus the share of `NAME_LINKS`, divided by the phrase's sum of both."""
    weight = np.where(rows["kind"] == LABEL, LABEL_WEIGHT, 1) * (1.0 + graph.degrees(rows["qid"]))
    weight[rows["kind"] == 0] = 0
    total = np.bincount(phrase, weight, size)[phrase]
    share = NAME_LINKS * np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
    evidence = rows["links"] + share
    return evidence / np.bincount(phrase, evidence, size)[phrase]


def _links(
    partials: Sequence[Path], entities: np.ndarray, sample: int
) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Count the documents that link to each entity, and sample them.

    Returns:
        the number of documents with a link; per entity the number of documents that link to it, int32 [E]; offsets
        int64 [E + 1] and values int32 of the samples: positions in a random order of all documents, ascending.
    """
    ids = np.empty(0, dtype=np.int64)
    for partial in partials:
        ids = np.union1d(ids, load_links(partial)[:, 0])
    place = np.empty(len(ids), dtype=np.int64)
    place[keyed_permutation(len(ids), _DOCUMENT_ORDER)] = np.arange(len(ids))
    counts = np.zeros(len(entities), dtype=np.int32)
    kept, buffer, held = np.empty(0, dtype=np.int64), list[np.ndarray](), 0
    for partial in partials:
        links = load_links(partial)
        rows = np.searchsorted(entities, links[:, 1])
        counts += np.bincount(rows, minlength=len(entities)).astype(np.int32)
        buffer.append(rows << 32 | place[np.searchsorted(ids, links[:, 0])])
        held += len(links)
        if held >= _BUFFER:
            kept, buffer, held = _smallest([kept, *buffer], sample), [], 0
    kept = _smallest([kept, *buffer], sample)
    offsets = np.searchsorted(kept >> 32, np.arange(len(entities) + 1)).astype(np.int64)
    return len(ids), counts, offsets, (kept & 0xFFFFFFFF).astype(np.int32)


def _smallest(parts: list[np.ndarray], count: int) -> np.ndarray:
    """Merge keys (entity row << 32 | position) and keep the `count` smallest of each row, sorted.

    Such bottom-k samples merge exactly: the result does not depend on how the links were divided.
    """
    keys = np.sort(np.concatenate(parts))
    rows = keys >> 32
    return keys[np.arange(len(keys)) - np.searchsorted(rows, rows) < count]


def _edges(graph: KnowledgeGraph, entities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the outgoing triples between `entities`, as offsets int64 [E + 1] and rows int32, without duplicates."""
    row = np.searchsorted(entities, graph.entities)
    row = np.where(entities[np.minimum(row, len(entities) - 1)] == graph.entities, row, -1)
    tails = row[graph.out_entities]
    heads = np.repeat(row, np.diff(graph.out_offsets))
    inside = (heads >= 0) & (tails >= 0) & (heads != tails)
    keys = np.unique(heads[inside] << 32 | tails[inside])
    offsets = np.searchsorted(keys >> 32, np.arange(len(entities) + 1)).astype(np.int64)
    return offsets, (keys & 0xFFFFFFFF).astype(np.int32)


def set_link_probabilities(folder: Path, partials: Iterable[OccurrenceCounts]) -> LinkDictionary:
    """Add link probabilities to a dictionary's folder (reduce 2).

    lp = (documents that link the phrase + s * prior) / (documents that contain it + s), per case class, s = `SMOOTHING`
    (Mihalcea & Csomai 2007, smoothed). The prior is the share of links among the occurrences of phrases that are names
    in Wikidata5M and rare (at most `RARE` documents), with as many words (1, 2, 3 or more) and the same case class. A
    phrase that entered the dictionary because it was linked would bias the estimate, so only names are used.

    Raises:
        UserError: the partial results belong to another dictionary.
    """
    dictionary = LinkDictionary.load(folder)
    held = np.zeros((len(dictionary.named), CASES), dtype=np.int64)
    linked = np.zeros_like(held)
    for partial in partials:
        ids = partial.rows[:, 0]
        if len(ids) and ids[-1] >= len(held):
            raise UserError(f"{folder}: occurrences were counted with another dictionary; count them again")
        held[ids] += partial.rows[:, 1 : 1 + CASES]
        linked[ids] += partial.rows[:, 1 + CASES :]
    prior = _prior(dictionary, held, linked)
    rare = np.minimum(dictionary.words, 3)
    probability = ((linked + SMOOTHING * prior[rare]) / (held + SMOOTHING)).astype(np.float32)
    stream = io.BytesIO()
    np.save(stream, probability)
    write_atomically(folder / f"{LINK_PROBABILITY}.npy", stream.getvalue())  # a process may have mapped an old file
    write_manifest(folder, dictionary.documents)
    return LinkDictionary.load(folder)


def _prior(dictionary: LinkDictionary, held: np.ndarray, linked: np.ndarray) -> np.ndarray:
    """Estimate prior link probabilities by number of words (row 0 unused) and case class, float64 [4, CASES].

    0 where there are no occurrences.
    """
    names = np.asarray(dictionary.named) & (held.sum(axis=1) <= RARE)
    prior = np.zeros((4, CASES))
    for words in (1, 2, 3):
        chosen = names & (np.minimum(dictionary.words, 3) == words)
        prior[words] = linked[chosen].sum(axis=0) / np.maximum(held[chosen].sum(axis=0), 1)
    return prior
