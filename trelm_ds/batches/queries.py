"""What is asked about chosen mentions: query documents behind the sequences, or spans for the decoder product."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from trelm_ds.batches.batch import Facts
from trelm_ds.corpus import TokenizerInfo
from trelm_ds.knowledge import Names, Triples
from trelm_ds.ragged import gather, spread


class Asked(NamedTuple):
    """F facts to ask for, in the order of their mentions.

    Attributes:
        mention: int64 [F], index of the mention among those that were looked at.
        place: int64 [F], what tells it from others about its mention: the key of its draws.
        first, last: int64 [F], its rows of T, first and last + 1.
        triples: [F], seen from the mention.
    """

    mention: np.ndarray
    place: np.ndarray
    first: np.ndarray
    last: np.ndarray
    triples: Triples

    def of(self, rows: np.ndarray) -> Asked:
        """The facts `rows`, int [n] or bool [F]."""
        return Asked(self.mention[rows], self.place[rows], self.first[rows], self.last[rows], self.triples.of(rows))


class Queries(NamedTuple):
    """F documents of N tokens in all.

    Attributes:
        tokens: int64 [N].
        lengths: int64 [F].
        mention: int64 [F], where the mention begins in `tokens`.
        answer: int64 [F], where the masks begin in `tokens`.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    mention: np.ndarray
    answer: np.ndarray


class Questions:
    """Turns triples into what the decoder needs.

    Args:
        names: of entities and relations.
        info: of the tokenizer.
        inverse_marker: int [n], tokens that stand before the relation where the head is asked for.
    """

    def __init__(self, names: Names, info: TokenizerInfo, inverse_marker: np.ndarray) -> None:
        self._entities = np.asarray(names.entity_offsets), np.asarray(names.entity_tokens)
        self._relations = np.asarray(names.relation_offsets), np.asarray(names.relation_tokens)
        self._info, self._marker = info, np.asarray(inverse_marker)

    def lengths(self, asked: Asked) -> np.ndarray:
        """int64 [F]: tokens of each fact's query."""
        parts = zip((self._entities, self._relations), (asked.triples.other, asked.triples.relation), strict=True)
        names = sum(offsets[rows + 1] - offsets[rows] for (offsets, _), rows in parts)
        return 2 + asked.last - asked.first + asked.triples.inverse * len(self._marker) + names

    def write(self, asked: Asked, tokens: np.ndarray) -> Queries:
        """Writes `[CLS] mention, relation, a mask for each token of the answer [SEP]`.

        Args:
            asked: the facts.
            tokens: int64 [T], packed, as they were read: a query shows its mention whatever the sequence hides.
        """
        lengths = self.lengths(asked)
        begin = np.cumsum(lengths) - lengths
        mention, marker = asked.last - asked.first, asked.triples.inverse * len(self._marker)
        relation_tokens, relation = gather(*self._relations, asked.triples.relation)
        after_mention = begin + 1 + mention
        made = np.full(int(lengths.sum()), self._info.mask, dtype=np.int64)
        made[begin], made[begin + lengths - 1] = self._info.cls, self._info.sep
        made[spread(begin + 1, mention)] = tokens[spread(asked.first, mention)]
        made[spread(after_mention, marker)] = np.tile(self._marker, int(asked.triples.inverse.sum()))
        made[spread(after_mention + marker, relation)] = relation_tokens
        return Queries(made, lengths, begin + 1, after_mention + marker + relation)

    def by_query(self, asked: Asked, queries: Queries, base: int, routed: np.ndarray) -> Facts:
        """The facts of the decoder query; `base`: row of T where queries begin; `routed`: bool [F], as in `Facts`."""
        masks = np.cumsum(queries.lengths) - 1 - queries.answer
        none = np.zeros(0, dtype=np.int64)
        return self._facts(asked, spread(base + queries.answer, masks), none.reshape(0, 2), none, routed)

    def by_span(self, asked: Asked, relations: np.ndarray, routed: np.ndarray) -> Facts:
        """The facts of the decoder product; `relations`: int64 [F], rows of the vector table; `routed`: as above."""
        spans = np.column_stack([asked.first, asked.last])
        return self._facts(asked, np.zeros(0, dtype=np.int64), spans, relations, routed)

    def _facts(
        self, asked: Asked, positions: np.ndarray, spans: np.ndarray, relations: np.ndarray, routed: np.ndarray
    ) -> Facts:
        labels, length = gather(*self._entities, asked.triples.other)
        arrays = (
            labels.astype(np.int64),
            np.repeat(np.arange(len(length)), length),
            spread(np.zeros_like(length), length),
            positions,
            spans,
            relations,
            asked.triples.inverse,
            routed,
        )
        return Facts(*map(torch.from_numpy, arrays))
