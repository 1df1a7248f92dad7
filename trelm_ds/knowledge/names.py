"""Names and descriptions of the graph's entities and relations as token ids, one ragged row per row of the graph."""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from trelm_ds.knowledge.arrays import Arrays
from trelm_ds.knowledge.graph import KnowledgeGraph
from trelm_ds.knowledge.wikidata5m import Wikidata5M, read_names
from trelm_ds.progress import track
from trelm_ds.ragged import offsets_of, spread

MAX_NAMES = 8
MAX_TEXT_TOKENS = 64
_BATCH = 1024  # lines encoded at a time
_ROWS = 1 << 16  # rows copied at a time

Encode = Callable[[list[str]], list[list[int]]]
Line = tuple[int, list[str]]
Pieces = Callable[[list[list[str]]], Iterator[list[list[int]]]]


@dataclass(frozen=True)
class Names(Arrays):
    """Token ids of names as they appear inside a sentence, without special tokens.

    Rows are those of a `KnowledgeGraph` with E entities and R relations; read some with
    `gather(entity_offsets, entity_tokens, rows)`. An entity or relation without a name has an empty row.

    Attributes:
        entity_offsets, entity_tokens: int64 [E + 1], int32; label of each entity.
        alias_offsets, alias_tokens: int64 [E + 1], int32; up to 8 names of each entity, concatenated, label first.
        text_offsets, text_tokens: int64 [E + 1], int32; first 64 tokens of each description, if there are any.
        relation_offsets, relation_tokens: int64 [R + 1], int32; label of each relation.
    """

    entity_offsets: np.ndarray
    entity_tokens: np.ndarray
    alias_offsets: np.ndarray
    alias_tokens: np.ndarray
    text_offsets: np.ndarray
    text_tokens: np.ndarray
    relation_offsets: np.ndarray
    relation_tokens: np.ndarray


def encode_names(
    files: Wikidata5M,
    graph: KnowledgeGraph,
    encode: Encode,
    special_ids: Iterable[int],
    max_malformed: float,
    counts: Counter[str],
) -> Names:
    """Read names and descriptions, and encode those of the graph's entities and relations.

    A name that encodes to nothing or contains [UNK] is skipped: the label is the first encodable name among the first
    8. If an id has several lines, its first line with a name is used.

    Args:
        files: the Wikidata5M files.
        graph: defines the rows.
        encode: maps texts to token ids, without adding special tokens.
        special_ids: tokens that must not appear in a name, including [UNK]; they are removed from descriptions.
        max_malformed: share of a file's lines that may be malformed; these are skipped with a warning.
        counts: receives the number of entities and relations without an encodable name, and of malformed description
            lines (malformed name lines are counted by the title table, which reads all names as well).

    Raises:
        UserError: damaged file, or too many malformed lines; names file and line.
    """
    special = frozenset(special_ids)

    def names(batch: list[list[str]]) -> Iterator[list[list[int]]]:
        few = [line[:MAX_NAMES] for line in batch]
        # With a leading space, a byte-level tokenizer encodes the name as it would inside a sentence.
        found = iter(encode([f" {name.strip()}" for line in few for name in line]))
        for line in few:
            yield [ids for ids in itertools.islice(found, len(line)) if ids and special.isdisjoint(ids)]

    def texts(batch: list[list[str]]) -> Iterator[list[list[int]]]:
        # A word has at least one token, so no more than this many words are needed.
        for ids in encode([" " + " ".join(line[0].split()[:MAX_TEXT_TOKENS]) for line in batch]):
            yield [[token for token in ids if token not in special][:MAX_TEXT_TOKENS]]

    lines = track(read_names(files.entity, "Q", max_malformed), "encoding entity names")
    entity = _collect(lines, graph.entities, names)
    relation = _collect(read_names(files.relation, "P", max_malformed), graph.relations, names)
    described: Iterable[Line] = ()
    if files.text is not None:
        described = track(read_names(files.text, "Q", max_malformed, counts), "encoding descriptions")
    text = _collect(described, graph.entities, texts)
    counts["graph: entities whose names cannot be written"] = entity.unwritten
    counts["graph: relations whose names cannot be written"] = relation.unwritten
    counts["graph: entities with a description"] = int((np.diff(text.offsets) > 0).sum())
    label, relation_label = (_copy_rows(one.tokens, one.offsets[:-1], one.first) for one in (entity, relation))
    return Names(*label, entity.offsets, entity.tokens, text.offsets, text.tokens, *relation_label)


class _Rows(NamedTuple):
    """Ragged rows of encoded names.

    Attributes:
        offsets, tokens: int64 [N + 1], int32; the names of each row, concatenated.
        first: int64 [N], tokens of each row's first name.
        unwritten: number of lines without an encodable name.
    """

    offsets: np.ndarray
    tokens: np.ndarray
    first: np.ndarray
    unwritten: int


def _collect(lines: Iterable[Line], ids: np.ndarray, encode: Pieces) -> _Rows:
    """Encode the lines of known ids and order them by `ids` (int32 [N], ascending).

    Rows are appended in file order and sorted at the end, so peak memory is twice the result.
    """
    rows, starts, sizes, firsts, tokens = array("q"), array("q"), array("i"), array("i"), array("i")
    unwritten = 0
    for batch in _batches(lines, np.asarray(ids)):
        for row, pieces in zip((row for row, _ in batch), encode([names for _, names in batch]), strict=True):
            before = len(tokens)
            for piece in pieces:
                tokens.extend(piece)
            unwritten += len(tokens) == before
            rows.append(row)
            starts.append(before)
            sizes.append(len(tokens) - before)
            firsts.append(len(pieces[0]) if pieces else 0)
    begin, length, first = (np.zeros(len(ids), dtype=np.int64) for _ in range(3))
    for target, values in ((begin, starts), (length, sizes), (first, firsts)):
        target[np.asarray(rows)] = np.asarray(values)
    return _Rows(*_copy_rows(np.asarray(tokens), begin, length), first, unwritten)


def _batches(lines: Iterable[Line], ids: np.ndarray) -> Iterator[list[Line]]:
    """Yield batches of (row in `ids`, names), keeping the first line with a name of each known id."""
    iterator = (line for line in lines if line[1])
    seen = np.zeros(len(ids), dtype=bool)
    while batch := list(itertools.islice(iterator, _BATCH)):
        numbers = np.array([number for number, _ in batch], dtype=ids.dtype)
        row = np.minimum(np.searchsorted(ids, numbers), len(ids) - 1)
        fresh = np.flatnonzero((ids[row] == numbers) & ~seen[row])
        fresh = np.sort(fresh[np.unique(row[fresh], return_index=True)[1]])
        seen[row[fresh]] = True
        yield [(int(row[place]), batch[place][1]) for place in fresh.tolist()]


def _copy_rows(tokens: np.ndarray, begin: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Copy the rows at `begin` [N] with `length` [N]; returns their offsets [N + 1] and tokens.

    Works in batches of rows, because the index arrays are larger than the tokens they select.
    """
    offsets = offsets_of(length)
    copied = np.empty(offsets[-1], dtype=np.int32)
    for low in range(0, len(length), _ROWS):
        high = min(low + _ROWS, len(length))
        copied[offsets[low] : offsets[high]] = tokens[spread(begin[low:high], length[low:high])]
    return offsets, copied
