"""The part of a micro-batch that attribution looks at in a step that chooses the knowledge paths."""

from __future__ import annotations

import numpy as np
import torch

from trelm_ds.model import AssessingBatch, Batch, KnowledgeItems
from trelm_ds.ragged import offsets_of, spread


def routed_facts(batch: Batch) -> Batch | None:
    """Cut out the documents with the facts marked `routed`, and these facts alone; None if there is none.

    Items stay as they are, apart from the rows that follow Eq. 7; nothing is masked for MLM.

    Args:
        batch: on the CPU.
    """
    facts: AssessingBatch | None = batch.objectives.get("cka")
    if facts is None or not facts.routed.any():
        return None
    chosen, bounds = facts.routed.numpy(), batch.cu_seqlens.numpy().astype(np.int64)
    if len(facts.spans):
        documents = np.searchsorted(bounds, facts.spans.numpy()[chosen, 0], side="right") - 1
    else:
        documents = batch.n_sequences + np.flatnonzero(chosen)  # one query each, in their order
    lengths = np.diff(bounds)[documents]
    rows = spread(bounds[documents], lengths)
    new_row = np.full(len(batch.input_ids), -1)
    new_row[rows] = np.arange(len(rows))
    return Batch.of_documents(
        input_ids=batch.input_ids[torch.from_numpy(rows)],
        cu_seqlens=torch.from_numpy(offsets_of(lengths).astype(np.int32)),
        max_seqlen=int(lengths.max()),
    )._replace(
        items=None if batch.items is None else _items_within(batch.items, new_row),
        objectives={"cka": _facts_within(facts, chosen, new_row)},
    )


def _items_within(items: KnowledgeItems, new_row: np.ndarray) -> KnowledgeItems:
    """Keep the rows following Eq. 7 that are still there; `new_row`: int64 [T], -1 where a row is gone."""
    rows = torch.from_numpy(new_row[items.token_rows.numpy()])
    return items._replace(token_rows=rows[rows >= 0], token_items=items.token_items[rows >= 0])


def _facts_within(facts: AssessingBatch, chosen: np.ndarray, new_row: np.ndarray) -> AssessingBatch:
    """Keep the facts `chosen`, bool [F], by their new rows."""
    fact, spans = facts.fact.numpy(), facts.spans.numpy()
    kept = chosen[fact]
    new_number = np.cumsum(chosen) - 1
    spans = spans[chosen] if len(spans) else spans
    begin = new_row[spans[:, 0]]
    arrays = {
        "labels": facts.labels.numpy()[kept],
        "fact": new_number[fact[kept]],
        "place": facts.place.numpy()[kept],
        "positions": new_row[facts.positions.numpy()[kept] if len(facts.positions) else facts.positions.numpy()],
        "spans": np.stack([begin, begin + spans[:, 1] - spans[:, 0]], axis=1),
        "relations": facts.relations.numpy()[chosen] if len(facts.relations) else facts.relations.numpy(),
        "inverse": facts.inverse.numpy()[chosen],
        "routed": np.ones(int(chosen.sum()), dtype=bool),
    }
    return AssessingBatch(**{name: torch.from_numpy(array) for name, array in arrays.items()})
