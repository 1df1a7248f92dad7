"""Documents with entity mentions, the common form of all sources of text."""

from __future__ import annotations

from typing import NamedTuple


class Mention(NamedTuple):
    """A span of characters [start, end) that names an entity, given by QID number or by a page title to be resolved."""

    start: int
    end: int
    target: int | str


class Document(NamedTuple):
    """A paragraph, article or sentence with its mentions in order of appearance."""

    text: str
    mentions: list[Mention]
