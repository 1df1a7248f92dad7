"""Comparison of data structures that find the linker's phrases in text. Used by linking.py."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import marisa_trie
import numpy as np

from trelm_ds.corpus.linking.text import MAXIMUM_LENGTH, boundaries, is_phrase, normalize, phrase_of


def compare_lookups(names: Iterator[tuple[int, list[str]]], texts: list[str]) -> dict:
    """Measure bytes per phrase, characters per second (one process) and occurrences found, for each structure."""
    spellings = (phrase_of(name) for _, all_names in names for name in all_names)
    phrases = sorted({phrase for phrase in spellings if is_phrase(phrase)})
    prepared = [(text, *boundaries(text)) for text in (normalize(text).text for text in texts)]
    characters = sum(map(len, texts))
    results: dict = {"phrases": len(phrases), "characters": characters}
    for name, measure in (("marisa-trie", _marisa), ("sorted hashes", _hashes), ("pyahocorasick", _automaton)):
        try:
            size, seconds, found = measure(phrases, prepared)
        except ImportError:
            results[name] = "not installed"
            continue
        results[name] = {
            "bytes_per_phrase": round(size / len(phrases), 2),
            "characters_per_second": round(characters / seconds),
            "found": found,
        }
    return results


def _marisa(phrases: list[str], texts: list) -> tuple[int, float, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trie"
        marisa_trie.Trie(phrases).save(str(path))
        size = path.stat().st_size
        trie = marisa_trie.Trie()
        trie.mmap(str(path))
        found, started = 0, time.perf_counter()
        for text, starts, ends in texts:
            for start in starts:
                for phrase, _ in trie.iter_prefixes_with_ids(text[start : start + MAXIMUM_LENGTH]):
                    found += ends[start + len(phrase)]
        return size, time.perf_counter() - started, found


def _hashes(phrases: list[str], texts: list, longest: int = 8) -> tuple[int, float, int]:
    """Look up hashes of word n-grams in a sorted array: 8 bytes per phrase, not counting an array of phrase numbers.

    A span's hash is computed from prefix sums of powers (odd base modulo 2^64), so no n-gram is ever built as a string.
    """
    base = np.uint64(0x9E3779B97F4A7C15)
    reach = 1 + max(len(text) for text, _, _ in texts)
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.full(reach, base, dtype=np.uint64))

    def spans(text: str, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
        with np.errstate(over="ignore"):
            sums = np.concatenate([[np.uint64(0)], np.cumsum(points * powers[: len(points)])])
            return (sums[last] - sums[first]) * powers[reach - 1 - first]  # shifts every span to the same power

    table = np.sort(np.concatenate([spans(phrase, np.array([0]), np.array([len(phrase)])) for phrase in phrases]))
    found, started = 0, time.perf_counter()
    for text, starts, ends in texts:
        first, last = np.array(starts, dtype=np.int64), np.flatnonzero(np.frombuffer(ends, dtype=np.uint8))
        if not len(first):
            continue
        token = np.searchsorted(last, first, side="right")
        for count in range(longest):
            inside = token + count < len(last)
            hashes = spans(text, first[inside], last[token[inside] + count])
            at = np.minimum(np.searchsorted(table, hashes), len(table) - 1)
            found += int((table[at] == hashes).sum())
    return table.nbytes, time.perf_counter() - started, found


def _automaton(phrases: list[str], texts: list) -> tuple[int, float, int]:
    import ahocorasick

    automaton = ahocorasick.Automaton()
    for number, phrase in enumerate(phrases):
        automaton.add_word(phrase, number)
    automaton.make_automaton()
    size = automaton.get_stats()["total_size"]
    found, started = 0, time.perf_counter()
    for text, starts, ends in texts:
        first = bytearray(len(text) + 1)
        for start in starts:
            first[start] = 1
        for last, number in automaton.iter(text):
            found += ends[last + 1] and first[last + 1 - len(phrases[number])]
    return size, time.perf_counter() - started, found
