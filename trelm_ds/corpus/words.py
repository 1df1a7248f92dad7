"""Whole words of token sequences and their corpus frequencies (paper 3.2: long-tail words)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from trelm_ds.files import load_array
from trelm_ds.keyed_random import keyed_bits
from trelm_ds.ragged import offsets_of, spread

_MIN_MERGE = 1 << 18  # words
_ARRAYS = ("hashes", "frequencies", "offsets", "tokens")


class Words(NamedTuple):
    """The words of packed tokens.

    Attributes:
        hashes: uint64 [W], hash of each word's tokens.
        first: int64 [W], index of its first token.
        length: int64 [W], number of its tokens.
    """

    hashes: np.ndarray
    first: np.ndarray
    length: np.ndarray


def words_of(tokens: np.ndarray, begins: np.ndarray, ordinary: np.ndarray) -> Words:
    """Find the words of packed tokens; special tokens belong to no word.

    Args:
        tokens: int [T].
        begins: bool [T], whether a word begins at a token; must be True after every special token.
        ordinary: bool [T], whether a token is not special.
    """
    first = np.flatnonzero(begins & ordinary)
    stops = np.flatnonzero(begins | ~ordinary)
    following = np.append(stops, len(tokens))
    length = following[np.searchsorted(following, first, side="right")] - first
    hashes = keyed_bits(length)
    for place in range(int(length.max(initial=0))):
        rows = np.flatnonzero(length > place)
        hashes[rows] = keyed_bits(hashes[rows], tokens[first[rows] + place])
    return Words(hashes, first, length)


class WordTable(NamedTuple):
    """Corpus frequency of every word.

    Attributes:
        hashes: uint64 [W], ascending.
        frequencies: int64 [W], occurrences in the corpus.
        offsets: int64 [W + 1], where each word begins in `tokens`.
        tokens: int32 [N], the tokens of all words.
    """

    hashes: np.ndarray
    frequencies: np.ndarray
    offsets: np.ndarray
    tokens: np.ndarray

    @classmethod
    def empty(cls) -> WordTable:
        """Return a table without words."""
        return cls(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros(0, np.int32))

    @classmethod
    def from_words(cls, tokens: np.ndarray, words: Words) -> WordTable:
        """Count the words of packed tokens [T]."""
        hashes, rows, counts = np.unique(words.hashes, return_index=True, return_counts=True)
        length = words.length[rows]
        return cls(hashes, counts, offsets_of(length), tokens[spread(words.first[rows], length)].astype(np.int32))

    @classmethod
    def merge(cls, tables: list[WordTable], minimum: int = 1) -> WordTable:
        """Sum tables, and drop words that occur less than `minimum` times in all."""
        hashes, rows, inverse = np.unique(
            np.concatenate([table.hashes for table in tables]), return_index=True, return_inverse=True
        )
        every = np.concatenate([table.frequencies for table in tables])
        counts = np.bincount(inverse, weights=every, minlength=len(hashes)).astype(np.int64)
        kept = counts >= minimum
        length = np.concatenate([np.diff(table.offsets) for table in tables])[rows[kept]]
        bases = np.cumsum([0, *(len(table.tokens) for table in tables[:-1])])
        first = np.concatenate([table.offsets[:-1] + base for table, base in zip(tables, bases, strict=True)])
        tokens = np.concatenate([table.tokens for table in tables])[spread(first[rows[kept]], length)]
        return cls(hashes[kept], counts[kept], offsets_of(length), tokens)

    def save(self, folder: Path) -> None:
        """Write one .npy file per array into `folder`."""
        for name, array in zip(_ARRAYS, self, strict=True):
            np.save(folder / f"{name}.npy", array)

    @classmethod
    def load(cls, folder: Path) -> WordTable:
        """Memory-map what `save` wrote.

        Raises:
            UserError: an array is missing or damaged.
        """
        return cls(*(load_array(folder / f"{name}.npy") for name in _ARRAYS))


class WordCounter:
    """Sums many tables.

    It merges when there is as much new as old, so the total work is linear in the size of the text.
    """

    def __init__(self) -> None:
        self._total, self._new, self._size = WordTable.empty(), list[WordTable](), 0

    def add(self, table: WordTable) -> None:
        """Add the frequencies of a table."""
        self._new.append(table)
        self._size += len(table.hashes)
        if self._size > max(len(self._total.hashes), _MIN_MERGE):
            self.total()

    def total(self, minimum: int = 1) -> WordTable:
        """Return the sum so far, without words that occur less than `minimum` times."""
        if self._new or minimum > 1:
            self._total = WordTable.merge([self._total, *self._new], minimum)
            self._new, self._size = [], 0
        return self._total
