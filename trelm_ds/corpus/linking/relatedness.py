"""Relatedness of entities (Milne & Witten 2008)."""

from __future__ import annotations

import numpy as np

from trelm_ds.corpus.linking.dictionary import LinkDictionary
from trelm_ds.ragged import gather, offsets_of


class Relatedness:
    """Computes the relatedness, in [0, 1], of entities in a dictionary.

    Milne & Witten (2008): 1 - (log max(|A|, |B|) - log |A ∩ B|) / (log N - log min(|A|, |B|)), where A and B are the
    sets of documents that link to each entity and N is the number of documents; 0 if they share no document. Entities
    joined by an edge in Wikidata have a relatedness of at least `graph_weight`.

    |A ∩ B| is exact if both sets fit into the dictionary's sample; otherwise it is estimated from the positions, in a
    random order of all documents, up to which both samples are complete.
    """

    def __init__(self, dictionary: LinkDictionary, graph_weight: float) -> None:
        self._dictionary, self._graph_weight = dictionary, graph_weight
        # Scratch memory that saves a sort: maps documents to columns. Never cleared, see _shared.
        self._at = np.zeros(max(dictionary.documents, 1), dtype=np.int32)

    def matrix(self, rows: np.ndarray) -> np.ndarray:
        """Compute float32 [n, n] for distinct entity rows [n], ascending; symmetric, 1 on the diagonal."""
        dictionary = self._dictionary
        related = np.zeros((len(rows), len(rows)), dtype=np.float32)
        if dictionary.documents > 1:
            size = dictionary.link_counts[rows].astype(np.float64)
            shared = self._shared(rows)
            larger, smaller = np.maximum.outer(size, size), np.minimum.outer(size, size)
            with np.errstate(divide="ignore", invalid="ignore"):
                distance = np.log(larger / shared) / np.log(dictionary.documents / smaller)
            related[:] = np.where(shared > 0, np.clip(1 - np.nan_to_num(distance, nan=0.0), 0, 1), 0)
        if self._graph_weight > 0:
            heads, tails = self._edges(rows)
            related[heads, tails] = np.maximum(related[heads, tails], self._graph_weight)
            related[tails, heads] = np.maximum(related[tails, heads], self._graph_weight)
        np.fill_diagonal(related, 1)
        return related

    def _shared(self, rows: np.ndarray) -> np.ndarray:
        """Count, or estimate, the documents that link to both entities, float64 [n, n]."""
        from scipy import sparse  # the training rooms, which import this one for its names, have no use for it

        dictionary = self._dictionary
        places, sampled = gather(dictionary.link_offsets, dictionary.links, rows)
        if not len(places):
            return np.zeros((len(rows), len(rows)))
        # If a place repeats, the last write wins: every place gets one column, and stale entries are never read.
        self._at[places] = np.arange(len(places), dtype=np.int32)
        ones = np.ones(len(places), dtype=np.float32)
        offsets = offsets_of(sampled)
        incidence = sparse.csr_array((ones, self._at[places], offsets.astype(np.int32)), shape=(len(rows), len(places)))
        counts = (incidence @ incidence.T).toarray().astype(np.float64)
        complete = np.full(len(rows), float(dictionary.documents))
        cut = sampled < dictionary.link_counts[rows]
        complete[cut] = places[offsets[1:][cut] - 1] + 1.0
        estimate = counts * (dictionary.documents / np.minimum.outer(complete, complete))
        size = dictionary.link_counts[rows]
        return np.minimum(estimate, np.minimum.outer(size, size))

    def _edges(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the pairs (i, j) of positions in `rows` with a triple from i to j."""
        # Outgoing edges only: there are few per entity, while a class such as "human" has millions of incoming ones.
        tails, degrees = gather(self._dictionary.edge_offsets, self._dictionary.edges, rows)
        heads = np.repeat(np.arange(len(rows)), degrees)
        found = np.minimum(np.searchsorted(rows, tails), len(rows) - 1)
        inside = rows[found] == tails
        return heads[inside], found[inside]
