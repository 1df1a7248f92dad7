"""Chosen mentions and long-tail words of packed sequences, and the knowledge items made of them (Eq. 4, 6, 7)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from trelm_ds.batches.collator import Sequences
from trelm_ds.corpus import words_of
from trelm_ds.knowledge.tables import memory_window
from trelm_ds.model import KnowledgeItems
from trelm_ds.ragged import spread


class Spans(NamedTuple):
    """n chosen mentions or long-tail words; -1 stands for no row.

    Attributes:
        owner: int64 [n], the sequence of each.
        number: int64 [n], what tells it from others of its kind and sequence: the key of its draws.
        first, last: int64 [n], its rows of T, first and last + 1.
        memory: int64 [n], its row of the memory bank.
        applied: bool [n], whether Eq. 7 is followed.
        entity, relation: int64 [n], rows of the vector table.
        sign: float32 [n], of the relation; 0 without one.
    """

    owner: np.ndarray
    number: np.ndarray
    first: np.ndarray
    last: np.ndarray
    memory: np.ndarray
    applied: np.ndarray
    entity: np.ndarray
    relation: np.ndarray
    sign: np.ndarray

    @classmethod
    def plain(
        cls, owner: np.ndarray, number: np.ndarray, first: np.ndarray, last: np.ndarray, memory: np.ndarray
    ) -> Spans:
        """Make spans with nothing injected."""
        none = np.full(len(owner), -1)
        return cls(
            owner=owner,
            number=number,
            first=first,
            last=last,
            memory=memory,
            applied=np.zeros(len(owner), dtype=bool),
            entity=none,
            relation=none,
            sign=np.zeros(len(owner), dtype=np.float32),
        )

    def of(self, rows: np.ndarray) -> Spans:
        """Pick the spans `rows`, int [m] or bool [n]."""
        return Spans(*(array[rows] for array in self))

    def beside(self, other: Spans) -> Spans:
        """Append the other spans to these."""
        return Spans(*map(np.concatenate, zip(self, other, strict=True)))


class WordFinder:
    """Finds long-tail words.

    Args:
        hashes: uint64 [W], of those words, ascending.
        starts: bool [V], whether a token begins a word.
        ordinary: bool [V], whether a token is not special.
        base: row of the first word in the memory bank.
    """

    def __init__(self, hashes: np.ndarray, starts: np.ndarray, ordinary: np.ndarray, base: int) -> None:
        self._hashes, self._starts, self._ordinary, self._base = hashes, starts, ordinary, base
        # Leading bits that a hash among them has: this sorts out most words before the slow search.
        bits = (8 * len(hashes)).bit_length()
        self._shift = np.uint64(64 - bits)
        self._leading = np.zeros(1 << bits, dtype=bool)
        self._leading[hashes >> self._shift] = True

    def __call__(self, sequences: Sequences, mentions: Spans) -> Spans:
        """Find the words that share no token with a mention; mentions are in order and do not overlap."""
        none = np.zeros(0, dtype=np.int64)
        if not len(self._hashes):
            return Spans.plain(none, none, none, none, none)
        ordinary = self._ordinary[sequences.tokens]
        begins = self._starts[sequences.tokens]
        begins[1:] |= ~ordinary[:-1]  # as in preparation, or hashes would differ
        words = words_of(sequences.tokens, begins, ordinary)
        found = np.flatnonzero(self._leading[words.hashes >> self._shift])
        hashes = words.hashes[found]
        row = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        first = words.first[found]
        last = first + words.length[found]
        following = np.searchsorted(mentions.last, first, side="right")  # the first mention that ends behind it
        free = np.append(mentions.first, len(sequences.tokens))[following] >= last
        wanted = np.flatnonzero(free & (self._hashes[row] == hashes))
        first, last = first[wanted], last[wanted]
        starts = sequences.starts
        owner = np.searchsorted(starts, first, side="right") - 1
        return Spans.plain(owner, first - starts[owner], first, last, self._base + row[wanted])


def items_of(sequences: Sequences, spans: Spans, window: int) -> KnowledgeItems:
    """Make items in the order of their first tokens; `memory`, `entity` and `relation` are those of the spans.

    Args:
        sequences: that the spans lie in.
        spans: [I], in order, without overlaps.
        window: k of Eq. 4.
    """
    ends = np.cumsum(sequences.lengths)
    cls = sequences.starts[spans.owner]
    begin, end = memory_window(spans.first, spans.last - 1, cls + 1, ends[spans.owner] - 1, window)
    new = np.zeros(len(spans.first), dtype=bool)
    pair = spans.owner * (spans.memory.max(initial=0) + 2) + spans.memory
    new[np.unique(pair, return_index=True)[1]] = True
    applied = np.flatnonzero(spans.applied)
    length = (spans.last - spans.first)[applied]
    arrays = {
        "memory": spans.memory,
        "window": np.column_stack([begin, end]),
        "cls": cls,
        "new_context": new & (spans.memory >= 0),
        "entity": spans.entity,
        "relation": spans.relation,
        "sign": spans.sign,
        "token_rows": spread(spans.first[applied], length),
        "token_items": np.repeat(applied, length),
    }
    return KnowledgeItems(**{name: torch.from_numpy(array) for name, array in arrays.items()})
