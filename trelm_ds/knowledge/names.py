"""Names and descriptions of the graph's entities and relations as token ids, a ragged row for each row of the graph."""

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

MOST_NAMES = 8
MOST_TEXT_TOKENS = 64
_BATCH = 1024  # lines
_ROWS = 1 << 16  # copied at a time

Encode = Callable[[list[str]], list[list[int]]]
Line = tuple[int, list[str]]
Pieces = Callable[[list[list[str]]], Iterator[list[list[int]]]]


@dataclass(frozen=True)
class Names(Arrays):
    """Token ids of names, written as inside a sentence, without special tokens.

    Rows are those of a `KnowledgeGraph` with E entities and R relations; `gather(entity_offsets, entity_tokens, rows)`
    reads some. What has no name has an empty row.

    Attributes:
        entity_offsets, entity_tokens: int64 [E + 1], int32; each entity's label.
        alias_offsets, alias_tokens: int64 [E + 1], int32; up to 8 names of each, label first, one after another.
        text_offsets, text_tokens: int64 [E + 1], int32; the first 64 tokens of each description, if there are any.
        relation_offsets, relation_tokens: int64 [R + 1], int32; each relation's label.
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
    """Reads names and descriptions and encodes those of the graph's entities and relations.

    A name that would hold [UNK], or no token at all, is passed over: the label is the first of the first 8 names that
    can be written. Of several lines for one id the first that has a name counts.

    Args:
        files: Wikidata5M's.
        graph: decides which rows there are.
        encode: texts to token ids, without special tokens around them.
        special_ids: tokens that must not stand in a name, [UNK] among them; they are left out of descriptions.
        max_malformed: share of a file's lines that may be malformed; they are left out with a warning.
        counts: gets what could not be written, and the malformed lines of the descriptions (the title table, which
            reads all names as well, counts theirs).

    Raises:
        UserError: damaged file, or too many malformed lines; names file and line.
    """
    special = frozenset(special_ids)

    def names(batch: list[list[str]]) -> Iterator[list[list[int]]]:
        few = [line[:MOST_NAMES] for line in batch]
        # The blank in front makes a byte-level tokenizer take it for a word within a sentence.
        found = iter(encode([f" {name.strip()}" for line in few for name in line]))
        for line in few:
            yield [ids for ids in itertools.islice(found, len(line)) if ids and special.isdisjoint(ids)]

    def texts(batch: list[list[str]]) -> Iterator[list[list[int]]]:
        # A word has at least one token, so more words than that are not needed.
        for ids in encode([" " + " ".join(line[0].split()[:MOST_TEXT_TOKENS]) for line in batch]):
            yield [[token for token in ids if token not in special][:MOST_TEXT_TOKENS]]

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
    label, relation_label = (_copied(one.tokens, one.offsets[:-1], one.first) for one in (entity, relation))
    return Names(*label, entity.offsets, entity.tokens, text.offsets, text.tokens, *relation_label)


class _Rows(NamedTuple):
    """Ragged rows, the length of the first piece of each row int64 [N], and how many lines had nothing to write."""

    offsets: np.ndarray
    tokens: np.ndarray
    first: np.ndarray
    unwritten: int


def _collect(lines: Iterable[Line], ids: np.ndarray, encode: Pieces) -> _Rows:
    """The pieces that `encode` makes of each line's names, in the order of `ids` (int32 [N], ascending).

    Plain arrays grow as the file is read, in its order, and are put in order in the end: twice the result is the peak.
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
    return _Rows(*_copied(np.asarray(tokens), begin, length), first, unwritten)


def _batches(lines: Iterable[Line], ids: np.ndarray) -> Iterator[list[Line]]:
    """Groups of (row in `ids`, names) of the lines with a name and a known id; the first line of each id."""
    iterator = (line for line in lines if line[1])
    seen = np.zeros(len(ids), dtype=bool)
    while batch := list(itertools.islice(iterator, _BATCH)):
        numbers = np.array([number for number, _ in batch], dtype=ids.dtype)
        row = np.minimum(np.searchsorted(ids, numbers), len(ids) - 1)
        fresh = np.flatnonzero((ids[row] == numbers) & ~seen[row])
        fresh = np.sort(fresh[np.unique(row[fresh], return_index=True)[1]])
        seen[row[fresh]] = True
        yield [(int(row[place]), batch[place][1]) for place in fresh.tolist()]


def _copied(tokens: np.ndarray, begin: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and tokens of the rows that lie at `begin` in `tokens`; copied bit by bit, for the indices are large."""
    offsets = offsets_of(length)
    copied = np.empty(offsets[-1], dtype=np.int32)
    for low in range(0, len(length), _ROWS):
        high = min(low + _ROWS, len(length))
        copied[offsets[low] : offsets[high]] = tokens[spread(begin[low:high], length[low:high])]
    return offsets, copied
