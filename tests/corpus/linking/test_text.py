"""Normalization keeps exact offsets, whatever folding does to lengths."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from trelm_ds.corpus.linking.text import (
    CAPITALIZED,
    LOWER,
    MAXIMUM_LENGTH,
    UPPER,
    boundaries,
    case_of,
    is_phrase,
    normalize,
    phrase_of,
    trim,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Alan TURING", "alan turing"),
        ("Straße", "strasse"),
        ("İstanbul", "i̇stanbul"),
        ("Cafe\u0301", "café"),
        ("two  spaces,\tor\u00a0none", "two spaces, or none"),
        ("line one \n line two", "line one\nline two"),
        ("rock ’n’ roll – “live”", "rock 'n' roll - \"live\""),
        ("", ""),
    ],
)
def test_spelling(text: str, expected: str) -> None:
    assert normalize(text).text == expected


@pytest.mark.parametrize(
    "text",
    [
        "İİ Straße in Istanbul",
        "Cafe\u0301 de la  Paix\u00a0ﬁn",
        "👩‍👩‍👧 loves C++ 🅰️ and é\u0301\u0308a",
        "ΐ ŉ ǰ ﬄ ẞ",
        "日本 東京 ١٢٣",
        "\u0301 leading mark",
        " \n\t ",
    ],
)
def test_words_lead_back_to_their_own_characters(text: str) -> None:
    normalized = normalize(text)
    starts, ends = boundaries(normalized.text)
    for start in starts:
        for end in range(start + 1, len(ends)):
            if ends[end]:
                first, last = normalized.span(start, end)
                assert normalize(text[first:last]).text == normalized.text[start:end]
                assert last == len(text) or unicodedata.category(text[last])[0] != "M"
    assert len(starts) >= (1 if any(character.isalnum() for character in text) else 0)


def test_no_character_is_split_by_folding() -> None:
    """Folded forms are one token (or none), so that no phrase can begin or end within an original character."""
    for point in range(sys.maxunicode + 1):
        if 0xD800 <= point <= 0xDFFF:
            continue
        text = normalize(chr(point)).text
        starts, ends = boundaries(text)
        assert not any(starts), hex(point)
        assert not any(ends[: len(text)]), hex(point)


def test_a_phrase_does_not_reach_over_lines() -> None:
    assert not is_phrase(normalize("New\nYork").text)


@pytest.mark.parametrize(
    ("name", "phrase"), [('"Heroes",', "heroes"), ("(Inc.)", "inc.)"), ("C++", "c++"), ("...", ""), ("Who?", "who?")]
)
def test_what_can_be_a_phrase_is_trimmed(name: str, phrase: str) -> None:
    assert phrase_of(name) == phrase
    start, end = trim(name, 0, len(name))
    assert normalize(name[start:end]).text == phrase


def test_rules_for_phrases() -> None:
    assert is_phrase("us")
    assert is_phrase("c++")
    assert not is_phrase("the")
    assert not is_phrase("1984")
    assert not is_phrase("c")
    assert not is_phrase("")
    assert not is_phrase("x" * (MAXIMUM_LENGTH + 1))


def test_case_classes() -> None:
    surfaces = {
        "turing": LOWER,
        "42": LOWER,
        "日本": LOWER,
        "Turing": CAPITALIZED,
        "iPhone": CAPITALIZED,
        "NATO": UPPER,
    }
    assert {surface: case_of(surface) for surface in surfaces} == surfaces
    assert (case_of("NATO"), case_of("A")) == (UPPER, CAPITALIZED)
