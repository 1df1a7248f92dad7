"""The dictionary of phrases and their entities, stored as arrays that any number of processes can memory-map.

Phrases are the keys of a MARISA trie (marisa-trie). Measured on 447,000 names of Wikidata5M (tools/bench/linking.py),
it is faster than pyahocorasick and than hashed word n-grams in a sorted array, and takes 6 bytes per phrase against 352
and 8. Its file is memory-mapped: 64 workers share one copy, where each would need an automaton of its own.
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
    """A dictionary of P phrases, C candidates and E entities.

    Attributes:
        phrases: trie; a phrase's id is its row in the arrays below.
        documents: number of documents with a link, on which relatedness is based.
        named: bool [P], whether the phrase is a name in Wikidata5M.
        words: uint8 [P], number of words in the phrase, at most 255.
        candidate_offsets: int64 [P + 1].
        candidates: int32 [C], entity rows, the most common one of each phrase first.
        commonness: float32 [C], share of the phrase's links that go to the candidate.
        entities: int32 [E], QID numbers, ascending.
        link_counts: int32 [E], number of documents that link to the entity.
        link_offsets, links: int64 [E + 1], int32: positions of these documents in a random order of all documents,
            ascending. Only the first ones are kept for entities with many, which makes them a uniform sample.
        edge_offsets, edges: int64 [E + 1], int32: rows of the tails of the entity's outgoing triples, ascending.
        link_probability: float32 [P, CASES], or None if occurrences have not been counted yet.
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
        """List the attributes that are arrays, each stored in a file of its name."""
        return [field.name for field in fields(cls)][2:]

    def save(self, folder: Path) -> None:
        """Write the trie, one .npy file per array, and a manifest with every file's size and hash into a new folder."""
        folder.mkdir(parents=True)
        self.phrases.save(str(folder / PHRASES))
        for name in self.array_names():
            if getattr(self, name) is not None:
                np.save(folder / f"{name}.npy", getattr(self, name))
        write_manifest(folder, self.documents)

    @classmethod
    def load(cls, folder: Path) -> LinkDictionary:
        """Memory-map a dictionary.

        Raises:
            UserError: a file is missing, damaged or of another kind.
        """
        manifest = read_json(folder / MANIFEST)
        if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
            raise UserError(f"{folder / MANIFEST}: not a linking dictionary of schema {SCHEMA}; build it again")
        for name, (size, _) in manifest["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != size:
                raise UserError(f"{path}: missing or not of {size} bytes; build the linking dictionary again")
        # The library does not validate the trie: a flipped bit could make it read out of bounds.
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
            arrays[name] = mapped.view(np.ndarray)  # the same memory; indexing an np.memmap is slow
        trie = marisa_trie.Trie()
        trie.mmap(str(folder / PHRASES))
        return cls(trie, manifest["documents"], **arrays)

    def find(self, text: str) -> Iterator[tuple[int, int, int]]:
        """Yield (start, end, phrase id) of every occurrence in a normalized text, including overlapping ones.

        Sorted by start, then end. Occurrences begin and end at token boundaries (`text.boundaries`).
        """
        starts, ends = boundaries(text)
        prefixes = self.phrases.iter_prefixes_with_ids
        for start in starts:
            for phrase, number in prefixes(text[start : start + MAXIMUM_LENGTH]):
                end = start + len(phrase)
                if ends[end]:
                    yield start, end, number

    def rows_of(self, qids: np.ndarray) -> np.ndarray:
        """Look up the rows, int64 [n], of QID numbers [n]; -1 for unknown ones."""
        if not len(self.entities):
            return np.full(len(qids), -1)
        known = np.asarray(qids, dtype=self.entities.dtype)  # with another dtype the search would copy all entities
        rows = np.minimum(np.searchsorted(self.entities, known), len(self.entities) - 1)
        return np.where(self.entities[rows] == qids, rows, -1)


def write_manifest(folder: Path, documents: int) -> None:
    """Write the manifest: [bytes, sha256] of every file in `folder`."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".npy", ".marisa"))
    files = {path.name: [path.stat().st_size, sha256_of(path)] for path in paths}
    write_atomically(folder / MANIFEST, canonical_json({"schema": SCHEMA, "documents": documents, "files": files}))
