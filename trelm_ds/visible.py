"""Text for people: what a terminal would obey instead of show is spelled out."""

from __future__ import annotations

import re

# Control characters but tab and line feed, marks that reorder what is around them, halves of characters.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Spell out the characters that would act on a terminal, such as \x1b, which titles and answers may hold."""
    return _UNSEEN.sub(lambda found: _spelled(ord(found.group())), text)


def _spelled(number: int) -> str:
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
