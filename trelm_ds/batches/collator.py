"""From packed sequences to a batch: what every part of the objective adds to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from trelm_ds.model import Batch, KnowledgeItems, Tail
from trelm_ds.ragged import offsets_of


class Sequences(NamedTuple):
    """B packed sequences of T tokens, as they were read and masked.

    Attributes:
        tokens: int64 [T], as read.
        input_ids: int64 [T], with masks in place.
        mlm_positions: int64 [M], rows of T to predict, ascending.
        lengths: int64 [B].
        epochs, sample_ids: int64 [B], keys of all draws: of the samples whose places these take.
        mentions, blocks, places: as `ShardReader.mentions` gives them.
    """

    tokens: np.ndarray
    input_ids: np.ndarray
    mlm_positions: np.ndarray
    lengths: np.ndarray
    epochs: np.ndarray
    sample_ids: np.ndarray
    mentions: np.ndarray
    blocks: np.ndarray
    places: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """int64 [B]: the row of T of each sequence's first token."""
        return np.cumsum(self.lengths) - self.lengths


class SideDocuments(NamedTuple):
    """Q documents that stand in a batch beside its sequences, N tokens in all.

    Attributes:
        tokens: int64 [N].
        lengths: int64 [Q].
    """

    tokens: np.ndarray
    lengths: np.ndarray

    @classmethod
    def none(cls) -> SideDocuments:
        return cls(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


class BatchPart(NamedTuple):
    """What a collator adds to a batch.

    Attributes:
        documents: packed behind all that is there already.
        objectives: entries of `Batch.objectives`.
        counts: what was found and drawn, by name; what `metrics.summary` does not know is logged per step.
        items: knowledge items, which one collator alone can give.
    """

    documents: SideDocuments
    objectives: dict[str, Any]
    counts: dict[str, int]
    items: KnowledgeItems | None = None


class Collator(Protocol):
    """Adds one part of the objective to micro-batches: a pure function, called in worker processes.

    Every draw is keyed by (seed, stream, epoch, sample id), so that a sample has the same part on any rank, in any
    worker and beside any other samples.

    Attributes:
        token_share: tokens of its documents as a share of the sequences' tokens, on average at most.
    """

    @property
    def token_share(self) -> float: ...

    def __call__(self, sequences: Sequences, base: int) -> BatchPart:
        """Make the part for a micro-batch; `base`: the row of T where its documents will begin."""
        ...


def collate(sequences: Sequences, collators: Iterable[Collator]) -> tuple[Batch, dict[str, int]]:
    """Pack a micro-batch.

    Returns:
        the batch, and what its parts have counted.
    """
    parts: list[BatchPart] = []
    base = len(sequences.tokens)
    for collator in collators:
        parts.append(collator(sequences, base))
        base += len(parts[-1].documents.tokens)
    documents = [part.documents for part in parts]
    lengths = np.concatenate([sequences.lengths, *(one.lengths for one in documents)])
    beside = lengths[len(sequences.lengths) :]
    tail = None
    if len(beside):
        tail = Tail(documents=len(beside), tokens=int(beside.sum()), max_seqlen=int(beside.max()))
    positions = sequences.mlm_positions
    batch = Batch(
        input_ids=torch.from_numpy(np.concatenate([sequences.input_ids, *(one.tokens for one in documents)])),
        cu_seqlens=torch.from_numpy(offsets_of(lengths).astype(np.int32)),
        max_seqlen=int(lengths.max()),
        mlm_positions=torch.from_numpy(positions),
        mlm_labels=torch.from_numpy(sequences.tokens[positions]),
        n_sequences=len(sequences.lengths),
        tail=tail,
        items=next((part.items for part in parts if part.items is not None), None),
        objectives={name: given for part in parts for name, given in part.objectives.items()},
    )
    counts = Counter[str]()
    for part in parts:
        counts.update(part.counts)
    return batch, dict(counts)
