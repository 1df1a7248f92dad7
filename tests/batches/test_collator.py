"""A micro-batch is put together from what any number of collators add to its sequences."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

from tests.model.test_batch import items
from trelm_ds.batches import BatchPart, Sequences, SideDocuments
from trelm_ds.batches.collator import collate
from trelm_ds.model import KnowledgeItems, Tail


def sequences() -> Sequences:
    """Two of three and four tokens; the second token of each is hidden by the mask 99."""
    tokens = np.arange(10, 17)
    shown, hidden = tokens.copy(), np.array([1, 4])
    shown[hidden] = 99
    return Sequences(
        tokens=tokens,
        input_ids=shown,
        mlm_positions=hidden,
        lengths=np.array([3, 4]),
        epochs=np.array([0, 0]),
        sample_ids=np.array([5, 6]),
        mentions=np.zeros((0, 4), dtype=np.int64),
        blocks=np.zeros(0, dtype=np.int64),
        places=np.zeros(0, dtype=np.int64),
    )


class Asked(NamedTuple):
    """What the fake objective is to predict."""

    rows: torch.Tensor

    @property
    def n_targets(self) -> int:
        return len(self.rows)


class Asking:
    """Adds documents of these lengths, whose first rows are its targets."""

    token_share = 0.0
    token_settings = ""

    def __init__(self, name: str, lengths: list[int], token: int, has_items: bool = False) -> None:
        self.name, self.lengths, self.token, self.has_items = name, np.array(lengths, dtype=np.int64), token, has_items

    def __call__(self, sequences: Sequences, base: int) -> BatchPart:
        found: KnowledgeItems | None = items() if self.has_items else None
        first = base + np.cumsum(self.lengths) - self.lengths
        return BatchPart(
            documents=SideDocuments(tokens=np.full(self.lengths.sum(), self.token), lengths=self.lengths),
            objectives={self.name: Asked(torch.from_numpy(first))},
            counts={f"{self.name} documents": len(self.lengths)},
            items=found,
        )


def test_sequences_alone() -> None:
    batch, counts = collate(sequences(), [])
    assert batch.input_ids.tolist() == [10, 99, 12, 13, 99, 15, 16]
    assert batch.cu_seqlens.tolist() == [0, 3, 7]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.mlm_labels.tolist() == [11, 14]
    assert (batch.max_seqlen, batch.n_sequences, batch.tail, batch.items) == (4, 2, None, None)
    assert batch.objectives == counts == {}


@pytest.mark.parametrize("second_has_items", [False, True])
def test_each_collator_is_told_where_its_documents_begin(second_has_items: bool) -> None:
    """All behind the sequences, in the order of the collators; rows count through the whole batch."""
    parts = [
        Asking("a", [5, 2], 70, not second_has_items),
        Asking("b", [], 80),
        Asking("c", [1, 3], 90, second_has_items),
    ]
    batch, counts = collate(sequences(), parts)
    assert batch.input_ids.tolist() == [10, 99, 12, 13, 99, 15, 16, *[70] * 7, *[90] * 4]
    assert batch.cu_seqlens.tolist() == [0, 3, 7, 12, 14, 15, 18]
    assert {name: given.rows.tolist() for name, given in batch.objectives.items()} == {
        "a": [7, 12],
        "b": [],
        "c": [14, 15],
    }
    assert batch.targets == {"mlm": 2, "a": 2, "b": 0, "c": 2}
    assert batch.tail == Tail(documents=4, tokens=11, max_seqlen=5)
    assert (batch.max_seqlen, batch.n_sequences) == (5, 2)
    assert batch.items is not None
    assert batch.mlm_positions.tolist() == [1, 4]
    assert counts == {"a documents": 2, "b documents": 0, "c documents": 2}
