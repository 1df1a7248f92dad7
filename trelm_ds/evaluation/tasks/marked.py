"""Sentences with markers around the mentions that a question is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Mark(NamedTuple):
    """A mention with the sign on both of its sides.

    Attributes:
        sign: a character, which every vocabulary has, so that no embedding has to be learned from a few examples.
        first, last: its places [first, last) in the text.
    """

    sign: str
    first: int
    last: int


def marked(sentence: str, marks: Sequence[Mark]) -> tuple[str, tuple[int, int]]:
    """Write the signs into the sentence, one space apart from its words; mentions may overlap.

    Returns:
        the text, and its characters [first, last) from the first sign to the last.
    """
    shown, end, signs = "", 0, []
    for place, sign in sorted(_signs(marks), key=lambda found: found[0]):  # stable: at one place as they are listed
        shown = _apart(_apart(shown, sentence[end:place]), sign)
        signs.append(len(shown))
        end = place
    return _apart(shown, sentence[end:]), (signs[0] - 1, signs[-1])


def _apart(text: str, more: str) -> str:
    """Add to a text, with a space between where there is none."""
    touching = text and more and not text[-1].isspace() and not more[0].isspace()
    return f"{text} {more}" if touching else text + more


def _signs(marks: Sequence[Mark]) -> list[tuple[int, str]]:
    """List (place, sign) so that at one place those that close come first, and mentions nest."""
    closing = sorted(marks, key=lambda mark: mark.first)[::-1]
    opening = sorted(marks, key=lambda mark: -mark.last)
    return [(mark.last, mark.sign) for mark in closing] + [(mark.first, mark.sign) for mark in opening]


def join_words(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Join words by spaces; return the text and the characters [first, last) of each word."""
    places, end = [], 0
    for word in words:
        places.append((end, end + len(word)))
        end += len(word) + 1
    return " ".join(words), places
