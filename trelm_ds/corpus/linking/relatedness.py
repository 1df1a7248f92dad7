"""How much two entities have to do with each other."""

from __future__ import annotations

import numpy as np

from trelm_ds.corpus.linking.dictionary import LinkDictionary


class Relatedness:
    """Relatedness of entities of a dictionary, in [0, 1].

    Milne & Witten (2008): with A, B the sets of documents that link to either entity and N all documents,
    1 - (log max(|A|, |B|) - log |A ∩ B|) / (log N - log min(|A|, |B|)), 0 where they share no document. An edge between
    the entities in Wikidata counts as a relatedness of `graph_weight` at least.

    |A ∩ B| is exact while both sets are no larger than the dictionary's sample; beyond that it is estimated from the
    places (in a random order of all documents) up to which both samples are complete.
    """

    def __init__(self, dictionary: LinkDictionary, graph_weight: float) -> None:
        self._dictionary, self._graph_weight = dictionary, graph_weight
        # Scratch memory that spares a sort: which of the places at hand a document has. Never cleared, see _shared.
        self._at = np.zeros(max(dictionary.documents, 1), dtype=np.int32)

    def matrix(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n, n] for distinct entity rows [n], ascending; symmetric, 1 on the diagonal."""
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
        """float64 [n, n]: documents that link to both."""
        from scipy import sparse  # the training rooms, which import this one for its names, have no use for it

        dictionary = self._dictionary
        offsets, places = gather(dictionary.link_offsets, dictionary.links, rows)
        if not len(places):
            return np.zeros((len(rows), len(rows)))
        # The last writer of a place gives it its column, so that every place has one column and none needs clearing.
        self._at[places] = np.arange(len(places), dtype=np.int32)
        ones = np.ones(len(places), dtype=np.float32)
        incidence = sparse.csr_array((ones, self._at[places], offsets.astype(np.int32)), shape=(len(rows), len(places)))
        counts = (incidence @ incidence.T).toarray().astype(np.float64)
        sampled = np.diff(offsets)
        complete = np.full(len(rows), float(dictionary.documents))
        cut = sampled < dictionary.link_counts[rows]
        complete[cut] = places[offsets[1:][cut] - 1] + 1.0
        estimate = counts * (dictionary.documents / np.minimum.outer(complete, complete))
        size = dictionary.link_counts[rows]
        return np.minimum(estimate, np.minimum.outer(size, size))

    def _edges(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (i, j) of positions in `rows` with a triple from i to j."""
        # Outgoing edges only: few per entity, while a class such as "human" has millions of incoming ones.
        offsets, tails = gather(self._dictionary.edge_offsets, self._dictionary.edges, rows)
        heads = np.repeat(np.arange(len(rows)), np.diff(offsets))
        found = np.minimum(np.searchsorted(rows, tails), len(rows) - 1)
        inside = rows[found] == tails
        return heads[inside], found[inside]


def gather(offsets: np.ndarray, values: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The given rows of compressed sparse rows: new offsets int64 [n + 1] and the values one row after another."""
    first = offsets[rows]
    lengths = offsets[rows + 1] - first
    result = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(lengths, out=result[1:])
    return result, values[np.repeat(first - result[:-1], lengths) + np.arange(result[-1])]
