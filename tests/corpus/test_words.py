"""Whole words: found, counted and summed as a slow loop over tokens would."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from trelm_ds.corpus import words as module
from trelm_ds.corpus.words import WordCounter, WordTable, words_of


def draw_tokens(seed: int, count: int = 500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens below 40, of which 0-4 are special and every multiple of three continues a word."""
    tokens = np.random.default_rng(seed).integers(0, 40, count)
    ordinary = tokens > 4
    begins = (tokens % 3 != 0) | ~ordinary
    begins[0] = True
    begins[1:] |= ~ordinary[:-1]
    return tokens, begins, ordinary


def literal(tokens: np.ndarray, begins: np.ndarray, ordinary: np.ndarray) -> Counter[tuple[int, ...]]:
    found: Counter[tuple[int, ...]] = Counter()
    word: list[int] = []
    for token, begin, plain in zip(tokens.tolist(), begins, ordinary, strict=True):
        if (begin or not plain) and word:
            found[tuple(word)] += 1
            word = []
        if plain:
            word.append(token)
    if word:
        found[tuple(word)] += 1
    return found


def as_counter(table: WordTable) -> Counter[tuple[int, ...]]:
    spans = zip(table.offsets[:-1], table.offsets[1:], table.frequencies, strict=True)
    return Counter({tuple(table.tokens[first:last].tolist()): int(count) for first, last, count in spans})


@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_words_are_counted_as_by_a_loop(count: int) -> None:
    tokens, begins, ordinary = (array[:count] for array in draw_tokens(count))
    table = WordTable.from_words(tokens, words_of(tokens, begins, ordinary))
    assert as_counter(table) == literal(tokens, begins, ordinary)
    assert (np.diff(table.hashes.astype(object)) > 0).all()


def test_sums_do_not_depend_on_how_the_text_is_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [draw_tokens(seed) for seed in range(9)]
    tables = [WordTable.from_words(part[0], words_of(*part)) for part in parts]
    expected = sum((literal(*part) for part in parts), Counter())
    for least in (1, 50, 1 << 20):
        monkeypatch.setattr(module, "_MIN_MERGE", least)
        counter = WordCounter()
        for table in tables:
            counter.add(table)
        assert as_counter(counter.total()) == expected
        assert as_counter(counter.total(3)) == Counter({word: n for word, n in expected.items() if n >= 3})
    WordTable.merge(tables).save(tmp_path)
    assert as_counter(WordTable.load(tmp_path)) == expected
    assert as_counter(WordCounter().total(2)) == Counter()


def test_words_of_different_length_and_order_differ() -> None:
    rows = [[7, 9], [9, 7], [7], [9], [7, 9, 9], [7, 7, 9]]
    tokens = np.concatenate(rows)
    begins = np.concatenate([[True] + [False] * (len(row) - 1) for row in rows])
    assert len(set(words_of(tokens, begins, np.ones(len(tokens), dtype=bool)).hashes.tolist())) == len(rows)
