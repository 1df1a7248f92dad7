"""Normalization of text for comparing phrases, with a mapping back to the original characters."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

import numpy as np

MAXIMUM_LENGTH = 80  # characters of a normalized phrase; one in a thousand names in Wikidata5M is longer
LOWER, CAPITALIZED, UPPER = 0, 1, 2  # case classes of a surface form
CASES = 3


def _marks() -> str:
    """List all combining marks, as ranges for a regular expression's character class."""
    ranges = list[str]()
    kinds = "".join(unicodedata.category(chr(point))[0] for point in range(0x20000))
    for found in re.finditer("M+", kinds):
        ranges.append(f"{chr(found.start())}-{chr(found.end() - 1)}")
    return "".join(ranges) + "\U000e0100-\U000e01ef"  # variation selectors, the only marks beyond 0x20000


# Python's \w lacks combining marks, which belong to the character before them.
_MARKS = _marks()
_TOKEN = re.compile(rf"([^\W_](?:[^\W_]|[{_MARKS}])*)|\S[{_MARKS}]*")
_ODD_SPACE = re.compile(r"[^\S \n]|\s\s")
_SAME_LENGTH = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "‐": "-", "‑": "-", "−": "-", "—": "-"})
_TRAILING = " \n\"',;:"


class NormalizedText(NamedTuple):
    """A text normalized for comparison: case-folded, NFC, single spaces, plain quotes and hyphens.

    Attributes:
        text: the normalized text.
        origin: None if every character i comes from character i of the original; else int32 [len(text) + 1], the
            original offset of each normalized character, followed by the original's length.
    """

    text: str
    origin: np.ndarray | None

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Map normalized offsets at token boundaries to original offsets [start, end)."""
        if self.origin is None:
            return start, end
        return int(self.origin[start]), int(self.origin[end])


def normalize(text: str) -> NormalizedText:
    """Normalize a text; `normalize(a + b)` equals `normalize(a) + normalize(b)` if `b` begins a token."""
    plain = text.translate(_SAME_LENGTH) if not text.isascii() else text
    folded = plain.casefold()
    # Folding maps every character to at least one, so equal length means one to one.
    one_to_one = len(folded) == len(plain) and not _ODD_SPACE.search(folded)
    if one_to_one and (text.isascii() or all(unicodedata.is_normalized("NFC", form) for form in (plain, folded))):
        return NormalizedText(folded, None)
    return _normalize_slowly(plain)


def _normalize_slowly(text: str) -> NormalizedText:
    """Normalize cluster by cluster: a character with its combining marks, or a run of white space."""
    parts, origin, start = list[str](), list[int](), 0
    while start < len(text):
        end = start + 1
        if text[start].isspace():
            while end < len(text) and text[end].isspace():
                end += 1
            part = "\n" if "\n" in text[start:end] else " "
        else:
            while end < len(text) and unicodedata.category(text[end])[0] == "M":
                end += 1
            composed = unicodedata.normalize("NFC", text[start:end])
            part = unicodedata.normalize("NFC", composed.casefold())
        parts.append(part)
        origin += [start] * len(part)
        start = end
    origin.append(len(text))
    return NormalizedText("".join(parts), np.array(origin, dtype=np.int32))


def boundaries(text: str) -> tuple[list[int], bytearray]:
    """Find where phrases may begin and end in a normalized text.

    A token is a word (letters, digits and their marks) or one other visible character. A phrase begins with a word, so
    that quotes and brackets stay outside, and ends with any token: "C++", "Inc.".

    Returns:
        the offsets at which words begin, and a mask [len(text) + 1] that is 1 where a token ends.
    """
    starts, ends = list[int](), bytearray(len(text) + 1)
    for match in _TOKEN.finditer(text):
        if match.lastindex:
            starts.append(match.start())
        ends[match.end()] = 1
    return starts, ends


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Narrow [start, end) to what can be a phrase: begins with a letter or digit, no quote, comma or space last."""
    while start < end and not text[start].isalnum():
        start += 1
    while end > start and (text[end - 1] in _TRAILING or text[end - 1] in "’‘“”" or text[end - 1].isspace()):
        end -= 1
    return start, end


def phrase_of(name: str) -> str:
    """Normalize a single name; empty if no part of it can be a phrase."""
    start, end = trim(name, 0, len(name))
    return normalize(name[start:end]).text


def case_of(surface: str) -> int:
    """Classify a surface form: `LOWER` (no capitals), `UPPER` (two or more capitals only: NATO), else `CAPITALIZED`."""
    if surface.islower():
        return LOWER
    if surface.isupper():
        return UPPER if len(surface) > 1 else CAPITALIZED
    return CAPITALIZED if surface != surface.lower() else LOWER


# English function words. On their own they name an entity so rarely that considering each would cost more than all
# other phrases together. Words that are names when capitalized (US, IT, WHO, May, Will) are not listed: the statistics
# distinguish case.
_FUNCTION_WORDS = """
a about above after again against all also although always am among an and another any are around as at away back be
became because become been before being below between both but by came can cannot could did do does doing down during
each either else even ever every few for from further get go had has have having he hence her here hers herself him
himself his how however i if in indeed instead into is its itself just last later least less like made make many me
might more most much must my myself near need neither never next no none nor not now of off often on once one only
onto or other others our ours ourselves out over own per perhaps quite rather said same see several shall she should
since so some still such than that the their theirs them themselves then there therefore these they this those though
three through throughout thus to together too toward towards two under until up upon use used using very via was we
well were what when where whether which while whom whose why with within without would yet you your
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())


def is_phrase(phrase: str) -> bool:
    """Tell whether a normalized name may enter a dictionary.

    Excluded are names of more than `MAXIMUM_LENGTH` characters, single characters, names without a letter (numbers,
    dates), of several lines, or of a single function word.
    """
    return (
        1 < len(phrase) <= MAXIMUM_LENGTH
        and "\n" not in phrase
        and phrase not in FUNCTION_WORDS
        and any(character.isalpha() for character in phrase)
    )
