"""Page titles to QIDs by way of redirects and Wikidata5M aliases."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from trelm_ds.knowledge import KnowledgeGraph

_QUALIFIER = re.compile(r" \([^()]*\)$")  # "Mercury (planet)"
_REDIRECT_HOPS = 5


def _spellings(title: str) -> tuple[str, ...]:
    """The names under which a title is looked up, best first."""
    bare = _QUALIFIER.sub("", title)
    return (title.casefold(),) if bare == title else (title.casefold(), bare.casefold())


class TitleResolver:
    """Maps titles to QID numbers.

    A title is an entity's label or one of its aliases, whatever the case; without a match, the title without its
    qualifier in parentheses is tried. A label wins over an alias, then the entity with more triples, then the lower
    QID; where more than one entity bears the name in the same way, the title counts as ambiguous.

    Args:
        titles: every title that will be asked for; only their names are kept in memory.
        redirects: title -> title.
        names: (QID number, names with the label first) of all entities.
        graph: for the number of triples.
    """

    def __init__(
        self,
        titles: Iterable[str],
        redirects: dict[str, str],
        names: Iterator[tuple[int, list[str]]],
        graph: KnowledgeGraph,
    ) -> None:
        self._redirects = redirects
        wanted = {spelling for title in titles for spelling in _spellings(self._target(title))}
        labels: dict[str, list[int]] = {}
        aliases: dict[str, list[int]] = {}
        for qid, entity_names in names:
            for index, name in enumerate(dict.fromkeys(name.casefold() for name in entity_names)):
                if name in wanted:
                    (aliases if index else labels).setdefault(name, []).append(qid)
        self._labels, self._aliases, self._graph = labels, aliases, graph

    def _target(self, title: str) -> str:
        for _ in range(_REDIRECT_HOPS):
            if title not in self._redirects:
                break
            title = self._redirects[title]
        return title

    def resolve(self, title: str, counts: Counter[str]) -> int | None:
        """The QID number of a title, or None; counts how it was found."""
        target = self._target(title)
        counts["links through a redirect"] += target != title
        for spelling in _spellings(target):
            candidates = self._labels.get(spelling) or self._aliases.get(spelling)
            if candidates:
                counts["links mapped"] += 1
                counts["links mapped, name ambiguous"] += len(candidates) > 1
                return self._best(candidates)
        counts["links without an entity"] += 1
        return None

    def _best(self, candidates: list[int]) -> int:
        if len(candidates) == 1:
            return candidates[0]
        qids = np.array(sorted(candidates))
        return int(qids[np.argmax(self._graph.degrees(qids))])
