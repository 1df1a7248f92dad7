"""A micro-batch: packed sequences with their masks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from trelm_ds.model import Tail
from trelm_ds.ragged import offsets_of, spread


class Items(NamedTuple):
    """I knowledge items of a micro-batch: chosen mentions and long-tail words, by place in the packed tokens.

    Attributes:
        memory: int64 [I], index into the step's `memory_rows`; -1 where the item has no row in the memory bank.
        window: int64 [I, 2], first and last + 1 of the rows of T that Eq. 4 averages.
        cls: int64 [I], the row of T of the item's sequence's first token, whose state Eq. 6 averages.
        new_context: bool [I], whether the item is the first of its memory row in its sequence.
        applied: bool [I], whether its embeddings follow Eq. 7 in this pass; else they stay plain.
        entity: int64 [I], index into the step's `vector_rows`: the other entity of the injected triple; -1 for words
            and where nothing is injected: h_e is then the tokens' own word embeddings.
        relation: int64 [I], likewise the triple's relation.
        sign: float32 [I], h_e = v_entity + sign * v_relation: -1 where the mention is the head, 1 where it is the tail.
        token_rows: int64 [K], rows of T, ascending, that follow Eq. 7: of the sequences and of the queries behind them.
        token_items: int64 [K], the item of each.
    """

    memory: torch.Tensor
    window: torch.Tensor
    cls: torch.Tensor
    new_context: torch.Tensor
    applied: torch.Tensor
    entity: torch.Tensor
    relation: torch.Tensor
    sign: torch.Tensor
    token_rows: torch.Tensor
    token_items: torch.Tensor


class Facts(NamedTuple):
    """F facts that the model is to complete, whose answers have N tokens in all (Eq. 2).

    Attributes:
        labels: int64 [N], the answers' tokens, fact by fact.
        fact: int64 [N], the fact of each.
        place: int64 [N], i of Eq. 2, counted from 0.
        positions: int64 [N], decoder query: the mask of each in T; empty for product.
        spans: int64 [F, 2], decoder product: the mention's rows of T, first and last + 1; empty [0, 2] for query.
        relations: int64 [F], decoder product: index into the step's `vector_rows`; empty for query.
        inverse: bool [F], whether the mention is the tail and the head is asked for.
        routed: bool [F], whether attribution looks at it in a step that chooses the knowledge paths.
    """

    labels: torch.Tensor
    fact: torch.Tensor
    place: torch.Tensor
    positions: torch.Tensor
    spans: torch.Tensor
    relations: torch.Tensor
    inverse: torch.Tensor
    routed: torch.Tensor


class Batch(NamedTuple):
    """B packed sequences, with the queries about them packed behind, T tokens in all; M of them are to be predicted.

    Attributes:
        input_ids: int64 [T], masks in place.
        cu_seqlens: int32 [B + Q + 1], where each sequence, and behind them each query, starts.
        max_seqlen: tokens of the longest of them.
        positions: int64 [M], rows of T to predict.
        labels: int64 [M], the true tokens.
        sequences: B.
        items: knowledge items; None where the run has no knowledge.
        facts: to complete; None where the run has no assessing.
        queries: Q, their tokens, the longest; None where there are none.
    """

    input_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    positions: torch.Tensor
    labels: torch.Tensor
    sequences: int
    items: Items | None = None
    facts: Facts | None = None
    queries: Tail | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`; from pinned memory the copy runs beside the computation."""
        return _moved(self, device)

    def routed(self) -> Batch | None:
        """The documents with the facts that attribution looks at, and these facts alone; None if there is none.

        Items stay as they are, apart from the rows that follow Eq. 7; nothing is masked for MLM.
        """
        facts = self.facts
        if facts is None or not facts.routed.any():
            return None
        chosen, bounds = facts.routed.numpy(), self.cu_seqlens.numpy().astype(np.int64)
        if len(facts.spans):
            documents = np.searchsorted(bounds, facts.spans.numpy()[chosen, 0], side="right") - 1
        else:
            documents = self.sequences + np.flatnonzero(chosen)  # one query each, in their order
        lengths = np.diff(bounds)[documents]
        rows = spread(bounds[documents], lengths)
        place = np.full(len(self.input_ids), -1)
        place[rows] = np.arange(len(rows))
        asked = chosen[facts.fact.numpy()]
        number = np.cumsum(chosen) - 1
        spans = facts.spans.numpy()[chosen] if len(facts.spans) else facts.spans.numpy()
        begin = place[spans[:, 0]]
        positions = facts.positions.numpy()[asked] if len(facts.positions) else facts.positions.numpy()
        shown = [
            facts.labels.numpy()[asked],
            number[facts.fact.numpy()[asked]],
            facts.place.numpy()[asked],
            place[positions],
            np.stack([begin, begin + spans[:, 1] - spans[:, 0]], axis=1),
            facts.relations.numpy()[chosen] if len(facts.relations) else facts.relations.numpy(),
            facts.inverse.numpy()[chosen],
            np.ones(len(documents), dtype=bool),
        ]
        items = self.items
        if items is not None:
            at = torch.from_numpy(place[items.token_rows.numpy()])
            items = items._replace(token_rows=at[at >= 0], token_items=items.token_items[at >= 0])
        return Batch(
            self.input_ids[torch.from_numpy(rows)],
            torch.from_numpy(offsets_of(lengths).astype(np.int32)),
            int(lengths.max()),
            self.positions[:0],
            self.labels[:0],
            0,
            items,
            Facts(*map(torch.from_numpy, shown)),
        )


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    return type(value)(*(_moved(item, device) for item in value)) if isinstance(value, tuple) else value
