"""What is asked about chosen mentions: query documents beside the sequences, or spans for the decoder product."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from trelm_ds.batches.collator import SideDocuments
from trelm_ds.batches.spans import Spans
from trelm_ds.corpus import TokenizerInfo
from trelm_ds.knowledge import Names, Triples
from trelm_ds.model import AssessingBatch
from trelm_ds.ragged import gather, spread


class FactRequests(NamedTuple):
    """F facts to ask for, in the order of their mentions.

    Attributes:
        mention: int64 [F], index of the mention among the spans that were looked at.
        place: int64 [F], what tells it from others about its mention: the key of its draws.
        triples: [F], seen from the mention.
    """

    mention: np.ndarray
    place: np.ndarray
    triples: Triples

    def of(self, rows: np.ndarray) -> FactRequests:
        """Pick the facts `rows`, int [n] or bool [F]."""
        return FactRequests(mention=self.mention[rows], place=self.place[rows], triples=self.triples.of(rows))


class QueryWriter:
    """Turns triples into what the decoder needs.

    Args:
        names: of entities and relations.
        inverse_marker: int [n], tokens that stand before the relation where the head is asked for.
    """

    def __init__(self, names: Names, info: TokenizerInfo, inverse_marker: np.ndarray) -> None:
        self._entities = np.asarray(names.entity_offsets), np.asarray(names.entity_tokens)
        self._relations = np.asarray(names.relation_offsets), np.asarray(names.relation_tokens)
        self._info, self._marker = info, np.asarray(inverse_marker)

    def lengths(self, facts: FactRequests, spans: Spans) -> np.ndarray:
        """Count the tokens of each fact's query: int64 [F]."""
        parts = zip((self._entities, self._relations), (facts.triples.other, facts.triples.relation), strict=True)
        names = sum(offsets[rows + 1] - offsets[rows] for (offsets, _), rows in parts)
        return 2 + _mention_lengths(facts, spans) + facts.triples.inverse * len(self._marker) + names

    def write(self, facts: FactRequests, spans: Spans, tokens: np.ndarray) -> SideDocuments:
        """Write `[CLS] mention, relation, a mask for each token of the answer [SEP]` for every fact.

        Args:
            facts: to ask for.
            spans: the mentions that they index.
            tokens: int64 [T], packed, as they were read: a query shows its mention whatever the sequence hides.
        """
        lengths = self.lengths(facts, spans)
        begin = np.cumsum(lengths) - lengths
        mention, marker = _mention_lengths(facts, spans), facts.triples.inverse * len(self._marker)
        relation_tokens, relation = gather(*self._relations, facts.triples.relation)
        after_mention = begin + 1 + mention
        made = np.full(int(lengths.sum()), self._info.mask, dtype=np.int64)
        made[begin], made[begin + lengths - 1] = self._info.cls, self._info.sep
        made[spread(begin + 1, mention)] = tokens[spread(spans.first[facts.mention], mention)]
        made[spread(after_mention, marker)] = np.tile(self._marker, int(facts.triples.inverse.sum()))
        made[spread(after_mention + marker, relation)] = relation_tokens
        return SideDocuments(tokens=made, lengths=lengths)

    def by_query(self, facts: FactRequests, queries: SideDocuments, base: int, routed: np.ndarray) -> AssessingBatch:
        """Make what the decoder query completes.

        Args:
            facts: that were asked for.
            queries: written for them.
            base: row of T where the queries begin.
            routed: bool [F], as in `AssessingBatch`.
        """
        ends = base + np.cumsum(queries.lengths) - 1  # of the masks: [SEP] comes behind
        labels, masks = gather(*self._entities, facts.triples.other)
        return self._batch(facts, labels, masks, routed, positions=spread(ends - masks, masks))

    def by_mention(
        self, facts: FactRequests, spans: Spans, tokens: np.ndarray, relations: np.ndarray
    ) -> AssessingBatch:
        """Make what the decoder mention completes: the mentions' own tokens, read from `tokens` int64 [T].

        Args:
            relations: int64 [F], rows of the vector table.
        """
        length = _mention_lengths(facts, spans)
        positions = spread(spans.first[facts.mention], length)
        routed = np.zeros(len(length), dtype=bool)
        return self._batch(facts, tokens[positions], length, routed, positions=positions, relations=relations)

    def by_span(self, facts: FactRequests, spans: Spans, relations: np.ndarray, routed: np.ndarray) -> AssessingBatch:
        """Make what the decoder product completes; `relations`: int64 [F], rows of the vector table."""
        which = facts.mention
        bounds = np.column_stack([spans.first[which], spans.last[which]])
        labels, length = gather(*self._entities, facts.triples.other)
        return self._batch(facts, labels, length, routed, spans=bounds, relations=relations)

    @staticmethod
    def _batch(
        facts: FactRequests, labels: np.ndarray, length: np.ndarray, routed: np.ndarray, **others: np.ndarray
    ) -> AssessingBatch:
        """Fill in what decoders share: answers of `length` [F] tokens `labels` [N]."""
        none = np.zeros(0, dtype=np.int64)
        arrays = {
            "labels": labels.astype(np.int64),
            "fact": np.repeat(np.arange(len(length)), length),
            "place": spread(np.zeros_like(length), length),
            "positions": none,
            "spans": none.reshape(0, 2),
            "relations": none,
            "inverse": facts.triples.inverse,
            "routed": routed,
        } | others
        return AssessingBatch(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def _mention_lengths(facts: FactRequests, spans: Spans) -> np.ndarray:
    return (spans.last - spans.first)[facts.mention]
