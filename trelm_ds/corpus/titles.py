"""Resolution of page titles to QIDs: through redirects, then by the dump's `page_props`, else by Wikidata5M names."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trelm_ds.knowledge import KnowledgeGraph

_QUALIFIER = re.compile(r" \([^()]*\)$")  # "Mercury (planet)"
_REDIRECT_HOPS = 5
# How a title was resolved, as bits of `TitleTable.flags`.
REDIRECTED, AMBIGUOUS, BY_PAGE_PROPS = 1, 2, 4
_ARRAYS = ("hashes", "qids", "flags")


def _spellings(title: str) -> tuple[str, ...]:
    """Return the names under which a title is looked up, best first."""
    bare = _QUALIFIER.sub("", title)
    return (title.casefold(),) if bare == title else (title.casefold(), bare.casefold())


def follow(title: str, redirects: dict[str, str]) -> str:
    """Follow redirects from a title to a page."""
    for _ in range(_REDIRECT_HOPS):
        if title not in redirects:
            break
        title = redirects[title]
    return title


class TitleResolver:
    """Maps titles to QID numbers.

    A page of the dump has the QID that `page_props` gives it, or none. Any other title is matched, ignoring case, with
    the labels and aliases of all entities; failing that, again without its qualifier in parentheses. A label wins over
    an alias, then the entity with more triples, then the lower QID. If several entities have the name as a label, or
    several as an alias and none as a label, the title counts as ambiguous.

    Args:
        titles: every title that will be resolved; only names that match one of them are kept in memory.
        redirects: title -> title.
        names: (QID number, names with the label first) of all entities.
        graph: provides the number of triples.
        pages: page of the dump -> QID number or None; empty without `page_props`.
    """

    def __init__(
        self,
        titles: Iterable[str],
        redirects: dict[str, str],
        names: Iterator[tuple[int, list[str]]],
        graph: KnowledgeGraph,
        pages: dict[str, int | None] | None = None,
    ) -> None:
        self._redirects, self._pages = redirects, pages or {}
        targets = {follow(title, redirects) for title in titles}
        wanted = {spelling for title in targets - self._pages.keys() for spelling in _spellings(title)}
        labels: dict[str, list[int]] = {}
        aliases: dict[str, list[int]] = {}
        for qid, entity_names in names:
            for index, name in enumerate(dict.fromkeys(name.casefold() for name in entity_names)):
                if name in wanted:
                    (aliases if index else labels).setdefault(name, []).append(qid)
        self._labels, self._aliases, self._graph = labels, aliases, graph

    def resolve(self, title: str) -> tuple[int | None, int]:
        """Resolve a title to a QID number or None, and flags that say how."""
        target = follow(title, self._redirects)
        flags = REDIRECTED if target != title else 0
        if target in self._pages:
            return self._pages[target], flags | BY_PAGE_PROPS
        for spelling in _spellings(target):
            candidates = self._labels.get(spelling) or self._aliases.get(spelling)
            if candidates:
                return self._best(candidates), flags | (AMBIGUOUS if len(candidates) > 1 else 0)
        return None, flags

    def _best(self, candidates: list[int]) -> int:
        """Choose the candidate with the most triples, then the lowest QID."""
        if len(candidates) == 1:
            return candidates[0]
        qids = np.array(sorted(candidates))
        return int(qids[np.argmax(self._graph.degrees(qids))])


def _hash(title: str) -> int:
    return int.from_bytes(hashlib.blake2b(title.encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True)
class TitleTable:
    """All resolved titles as sorted arrays, which worker processes share through the page cache.

    Attributes:
        hashes: uint64 [N], ascending, hash of each title. With 64 bits, any two of 20 million titles collide in one of
            100,000 dumps.
        qids: int32 [N], QID numbers; -1 for a title without an entity.
        flags: uint8 [N], how each title was resolved.
    """

    hashes: np.ndarray
    qids: np.ndarray
    flags: np.ndarray

    @classmethod
    def build(cls, titles: set[str], resolve: Callable[[str], tuple[int | None, int]]) -> TitleTable:
        """Resolve every title once."""
        hashes, qids, flags = array("Q"), array("i"), bytearray()
        for title in titles:
            qid, found = resolve(title)
            hashes.append(_hash(title))
            qids.append(-1 if qid is None else qid)
            flags.append(found)
        order = np.argsort(np.array(hashes, dtype=np.uint64), kind="stable")
        columns = (np.array(hashes, np.uint64), np.array(qids, np.int32), np.frombuffer(flags, dtype=np.uint8))
        return cls(*(column[order] for column in columns))

    def save(self, folder: Path) -> None:
        """Write one .npy file per array into `folder`."""
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> TitleTable:
        """Memory-map what `save` wrote."""
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS))

    def lookup(self, titles: list[str]) -> dict[str, tuple[int, int]]:
        """Map titles that are in the table to (QID number or -1, flags)."""
        wanted = np.array([_hash(title) for title in titles], dtype=np.uint64)
        rows = np.searchsorted(self.hashes, wanted)
        assert not len(wanted) or np.array_equal(self.hashes[rows], wanted)
        pairs = zip(self.qids[rows].tolist(), self.flags[rows].tolist(), strict=True)
        return dict(zip(titles, pairs, strict=True))


def count_link(qid: int, flags: int, counts: Counter[str]) -> None:
    """Count how one link was resolved."""
    counts["mentions through a redirect"] += bool(flags & REDIRECTED)
    counts["mentions mapped"] += qid >= 0
    counts["mentions mapped by page_props"] += qid >= 0 and bool(flags & BY_PAGE_PROPS)
    counts["mentions mapped, name ambiguous"] += bool(flags & AMBIGUOUS)
    counts["mentions without an entity"] += qid < 0
