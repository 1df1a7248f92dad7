"""Chosen mentions and long-tail words of packed sequences, and what makes them items (Eq. 4, 6, 7)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from trelm_ds.batches.batch import Items
from trelm_ds.corpus import words_of
from trelm_ds.knowledge.tables import memory_window
from trelm_ds.ragged import spread


class Sequences(NamedTuple):
    """B packed sequences of T tokens, as they were read and masked.

    Attributes:
        tokens: int64 [T], as read.
        masked: int64 [T], as shown to the model.
        predicted: int64 [P], rows of T to predict, ascending.
        lengths: int64 [B].
        epochs, sample_ids: int64 [B], keys of all draws: of the samples whose places these take.
        mentions, blocks, places: of what was read, as `ShardReader.mentions` gives them.
    """

    tokens: np.ndarray
    masked: np.ndarray
    predicted: np.ndarray
    lengths: np.ndarray
    epochs: np.ndarray
    sample_ids: np.ndarray
    mentions: np.ndarray
    blocks: np.ndarray
    places: np.ndarray


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
        """Spans that stay as they are."""
        none = np.full(len(owner), -1)
        sign = np.zeros(len(owner), dtype=np.float32)
        return cls(owner, number, first, last, memory, np.zeros(len(owner), dtype=bool), none, none, sign)

    def of(self, rows: np.ndarray) -> Spans:
        """The spans `rows`, int [m] or bool [n]."""
        return Spans(*(array[rows] for array in self))

    def beside(self, other: Spans) -> Spans:
        """These spans, then the others."""
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

    def __call__(self, read: Sequences, mentions: Spans) -> Spans:
        """The words that share no token with one of the mentions, which are in order and do not overlap."""
        none = np.zeros(0, dtype=np.int64)
        if not len(self._hashes):
            return Spans.plain(none, none, none, none, none)
        ordinary = self._ordinary[read.tokens]
        begins = self._starts[read.tokens]
        begins[1:] |= ~ordinary[:-1]  # as in preparation, or hashes would differ
        words = words_of(read.tokens, begins, ordinary)
        found = np.flatnonzero(self._leading[words.hashes >> self._shift])
        hashes = words.hashes[found]
        row = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        first = words.first[found]
        last = first + words.length[found]
        following = np.searchsorted(mentions.last, first, side="right")  # the first mention that ends behind it
        free = np.append(mentions.first, len(read.tokens))[following] >= last
        wanted = np.flatnonzero(free & (self._hashes[row] == hashes))
        first, last = first[wanted], last[wanted]
        starts = np.cumsum(read.lengths) - read.lengths
        owner = np.searchsorted(starts, first, side="right") - 1
        return Spans.plain(owner, first - starts[owner], first, last, self._base + row[wanted])


def items_of(read: Sequences, spans: Spans, window: int) -> Items:
    """Items in the order of their first tokens; `memory`, `entity` and `relation` are those of the spans.

    Args:
        read: the sequences.
        spans: [I], in order, without overlaps.
        window: k of Eq. 4.
    """
    ends = np.cumsum(read.lengths)
    cls = (ends - read.lengths)[spans.owner]
    begin, end = memory_window(spans.first, spans.last - 1, cls + 1, ends[spans.owner] - 1, window)
    new = np.zeros(len(spans.first), dtype=bool)
    pair = spans.owner * (spans.memory.max(initial=0) + 2) + spans.memory
    new[np.unique(pair, return_index=True)[1]] = True
    applied = np.flatnonzero(spans.applied)
    length = (spans.last - spans.first)[applied]
    arrays = (
        spans.memory,
        np.column_stack([begin, end]),
        cls,
        new & (spans.memory >= 0),
        spans.applied,
        spans.entity,
        spans.relation,
        spans.sign,
        spread(spans.first[applied], length),
        np.repeat(applied, length),
    )
    return Items(*map(torch.from_numpy, arrays))
