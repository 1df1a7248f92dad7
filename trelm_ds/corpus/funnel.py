"""Counts of preparation in processing order, for tables and the data card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

_ORDER = (
    "pages", "pages of other namespaces or without text", "redirects", "records left out: malformed",
    "pages dropped: not wikitext", "pages dropped: too large", "pages dropped: disambiguation", "pages dropped: list",
    "pages dropped: unclosed markup", "pages dropped: too short", "articles", "paragraphs",
    "paragraphs dropped: too short", "templates left out", "documents", "documents held out",
    "sequences held out", "documents without a token", "sentences",
    "links found", "links dropped: in a short paragraph", "subjects found", "mentions found",
    "mentions through a redirect", "mentions mapped", "mentions mapped by page_props",
    "mentions mapped, name ambiguous", "mentions without an entity", "mentions added by the linker",
    "mentions dropped: overlap", "mentions dropped: inside a token", "mentions dropped: no token",
    "mentions dropped: cut between two sequences", "mentions held out", "mentions kept",
    "mentions kept, with a triple",
    "entities mentioned", "entities mentioned at most 5 times", "entities mentioned, with a triple", "words",
    "graph: triples", "graph: triples repeated", "graph: lines left out, malformed", "graph: facts held out",
    "graph: facts held out, another fact connects the two", "graph: facts to hold out that are not in it",
    "graph: entities",
    "graph: entities without a name", "graph: entities whose names cannot be written",
    "graph: entities with a description", "graph: relations", "graph: relations without a name",
    "graph: relations whose names cannot be written", "names: lines left out, malformed",
)  # fmt: skip
_PLACE = {name: place for place, name in enumerate(_ORDER)}


def total(parts: Iterable[Mapping[str, int]]) -> Counter[str]:
    """Sum several counts."""
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part)
    return counts


def ordered(counts: Mapping[str, int]) -> dict[str, int]:
    """Sort counts into processing order, without zeros; unknown names come last."""
    names = sorted(counts, key=lambda name: (_PLACE.get(name, len(_ORDER)), name))
    return {name: int(counts[name]) for name in names if counts[name]}
