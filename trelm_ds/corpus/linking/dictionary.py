"""The dictionary of phrases with their entities, on disk as arrays that any number of processes map into memory.

Phrases are the keys of a MARISA trie (marisa-trie). Measured on 447,000 names of Wikidata5M (tools/bench/linking.py),
it is faster than pyahocorasick and than hashed word n-grams in a sorted array, and takes 6 bytes a phrase against 352
and 8. Its file is mapped, not loaded: 64 workers share one copy where every automaton would be private.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import marisa_trie
import numpy as np

from trelm_ds.corpus.linking.text import MAXIMUM_LENGTH, boundaries
from trelm_ds.errors import UserError
from trelm_ds.files import canonical_json, read_json, sha256_of, write_atomically

SCHEMA = 1
PHRASES, MANIFEST, LINK_PROBABILITY = "phrases.marisa", "manifest.json", "link_probability"


@dataclass(frozen=True)
class LinkDictionary:
    """P phrases, C candidates, E entities (rows ascend with the QID number).

    Attributes:
        phrases: trie; a phrase's id is its row in what follows.
        documents: number of documents with a link, those that relatedness is measured by.
        named: bool [P], whether the phrase is a name in Wikidata5M.
        words: uint8 [P], words of the phrase, at most 255.
        candidate_offsets: int64 [P + 1].
        candidates: int32 [C], entity rows; a phrase's most common one first.
        commonness: float32 [C], share of the phrase's links that go to the candidate.
        entities: int32 [E], QID numbers, ascending.
        link_counts: int32 [E], documents that link to the entity.
        link_offsets, links: int64 [E + 1], int32: places of these documents in a random order of all documents,
            ascending; only the first ones of entities with many, which makes them a uniform sample.
        edge_offsets, edges: int64 [E + 1], int32: rows of the entities that its triples lead to, ascending.
        link_probability: float32 [P, CASES], or None as long as occurrences have not been counted.
    """

    phrases: marisa_trie.Trie
    documents: int
    named: np.ndarray
    words: np.ndarray
    candidate_offsets: np.ndarray
    candidates: np.ndarray
    commonness: np.ndarray
    entities: np.ndarray
    link_counts: np.ndarray
    link_offsets: np.ndarray
    links: np.ndarray
    edge_offsets: np.ndarray
    edges: np.ndarray
    link_probability: np.ndarray | None = None

    @classmethod
    def array_names(cls) -> list[str]:
        """The attributes that are arrays, each in a file of its name."""
        return [field.name for field in fields(cls)][2:]

    def save(self, folder: Path) -> None:
        """Writes the trie, one .npy file per array and a manifest with every file's size and hash into a new folder."""
        folder.mkdir(parents=True)
        self.phrases.save(str(folder / PHRASES))
        for name in self.array_names():
            if getattr(self, name) is not None:
                np.save(folder / f"{name}.npy", getattr(self, name))
        write_manifest(folder, self.documents)

    @classmethod
    def load(cls, folder: Path) -> LinkDictionary:
        """Maps the arrays of a folder into memory.

        Raises:
            UserError: a missing, damaged or foreign file.
        """
        manifest = read_json(folder / MANIFEST)
        if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
            raise UserError(f"{folder / MANIFEST}: not a linking dictionary of schema {SCHEMA}; build it again")
        for name, (size, _) in manifest["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != size:
                raise UserError(f"{path}: missing or not of {size} bytes; build the linking dictionary again")
        # The trie's library trusts its file; a flipped bit in it may read outside of the mapping.
        if sha256_of(folder / PHRASES) != manifest["files"][PHRASES][1]:
            raise UserError(f"{folder / PHRASES}: damaged; build the linking dictionary again")
        arrays = {}
        for name in cls.array_names():
            path = folder / f"{name}.npy"
            if path.name not in manifest["files"] and name == LINK_PROBABILITY:
                continue
            try:
                mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            except (ValueError, OSError) as error:
                raise UserError(f"{path}: damaged ({error}); build the linking dictionary again") from None
            arrays[name] = mapped.view(np.ndarray)  # the same memory; np.memmap is slow to index
        trie = marisa_trie.Trie()
        trie.mmap(str(folder / PHRASES))
        return cls(trie, manifest["documents"], **arrays)

    def find(self, text: str) -> Iterator[tuple[int, int, int]]:
        """Yields (start, end, phrase id) of every occurrence in a normalized text, overlapping ones included.

        In order of start, then end. An occurrence begins and ends where tokens do (`text.boundaries`).
        """
        starts, ends = boundaries(text)
        prefixes = self.phrases.iter_prefixes_with_ids
        for start in starts:
            for phrase, number in prefixes(text[start : start + MAXIMUM_LENGTH]):
                end = start + len(phrase)
                if ends[end]:
                    yield start, end, number

    def rows_of(self, qids: np.ndarray) -> np.ndarray:
        """int64 rows of QID numbers [n]; -1 for an unknown one."""
        if not len(self.entities):
            return np.full(len(qids), -1)
        known = np.asarray(qids, dtype=self.entities.dtype)  # of another type, the search would copy all entities
        rows = np.minimum(np.searchsorted(self.entities, known), len(self.entities) - 1)
        return np.where(self.entities[rows] == qids, rows, -1)


def write_manifest(folder: Path, documents: int) -> None:
    """Records [bytes, sha256] of every file in `folder`."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".npy", ".marisa"))
    files = {path.name: [path.stat().st_size, sha256_of(path)] for path in paths}
    write_atomically(folder / MANIFEST, canonical_json({"schema": SCHEMA, "documents": documents, "files": files}))
