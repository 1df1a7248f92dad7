"""What every source of text yields: documents with entity mentions."""

from __future__ import annotations

from typing import NamedTuple


class Mention(NamedTuple):
    """A span of characters [start, end) that names an entity: a QID number, or a page title not yet resolved."""

    start: int
    end: int
    target: int | str


class Document(NamedTuple):
    """A paragraph, article or sentence with its mentions in order of appearance."""

    text: str
    mentions: list[Mention]
