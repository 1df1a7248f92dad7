"""What a worker sends arrives as it was, in one tensor."""

from __future__ import annotations

import pickle
from typing import Any

import torch

from trelm_ds.batches import Step
from trelm_ds.batches.flat_buffer import FlatBuffer
from trelm_ds.model import AssessingBatch, Batch, KnowledgeItems, Tail
from trelm_ds.shards import Damage


def made(rows: int) -> Step:
    """Tensors of every type and shape there is, empty ones among them."""
    numbers = torch.arange(rows)
    items = KnowledgeItems(
        memory=numbers,
        window=numbers.new_zeros(rows, 2),
        cls=numbers,
        new_context=numbers % 2 == 0,
        entity=numbers,
        relation=numbers,
        sign=numbers.float(),
        token_rows=numbers,
        token_items=numbers,
    )
    facts = AssessingBatch(
        labels=numbers,
        fact=numbers,
        place=numbers,
        positions=numbers,
        spans=torch.zeros(0, 2, dtype=torch.int64),
        relations=numbers[:0],
        inverse=numbers > 3,
        routed=numbers > 4,
    )
    plain = Batch(
        input_ids=numbers,
        cu_seqlens=numbers.int(),
        max_seqlen=rows,
        mlm_positions=numbers,
        mlm_labels=numbers[::2],
        n_sequences=3,
    )
    full = plain._replace(tail=Tail(1, 3, 3), items=items, objectives={"cka": facts})
    return Step(
        micro_batches=[full, plain],
        damages=[Damage(1, "shard", 5, 7, "torn")],
        memory_rows=numbers,
        vector_rows=numbers,
        negatives=numbers,
        counts={"facts": 4, "corrupted": 2},
        targets={"mlm": 6, "cka": rows},
    )


def tensors_of(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = list(value.values()) if isinstance(value, dict) else value
    return [found for item in parts for found in tensors_of(item)] if isinstance(parts, list | tuple) else []


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def test_a_step_arrives_as_it_was() -> None:
    for rows in (0, 1, 13):
        sent = made(rows)
        packed = FlatBuffer.of(sent)
        assert len(tensors_of(sent)) == 2 * 4 + 9 + 8 + 3
        assert not tensors_of(packed.content)
        arrived = pickle.loads(pickle.dumps(packed)).unpacked()
        assert same(arrived, sent)
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors_of(arrived) if tensor.numel()}) <= 1
