"""What a worker sends arrives as it was, in one tensor."""

from __future__ import annotations

import pickle
from typing import Any

import torch

from trelm_ds.batches.batch import Batch, Facts, Items
from trelm_ds.batches.flat_buffer import Parcel
from trelm_ds.batches.loader import StepBatches
from trelm_ds.shards import Damage


def made(rows: int) -> StepBatches:
    """Tensors of every type and shape there is, empty ones among them."""
    numbers = torch.arange(rows)
    items = Items(*[numbers] * 3, numbers % 2 == 0, numbers % 2 == 1, numbers, numbers, numbers.float(), *[numbers] * 2)
    facts = Facts(*[numbers] * 4, torch.zeros(0, 2, dtype=torch.int64), numbers[:0], numbers > 3, numbers > 4)
    full = Batch(
        numbers, numbers.int(), rows, numbers, numbers[::2], 3, items._replace(window=numbers.new_zeros(rows, 2)), facts
    )
    plain = Batch(numbers, numbers.int(), rows, numbers, numbers, 1)
    return StepBatches([full, plain], 2, [Damage(1, "shard", 5, 7, "torn")], numbers, numbers, numbers, {"facts": 4})


def tensors_of(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [found for item in value for found in tensors_of(item)] if isinstance(value, list | tuple) else []


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def test_a_step_arrives_as_it_was() -> None:
    for rows in (0, 1, 13):
        sent = made(rows)
        parcel = Parcel.of(sent)
        assert not tensors_of(parcel.content)
        arrived = pickle.loads(pickle.dumps(parcel)).unpacked()
        assert same(arrived, sent)
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors_of(arrived) if tensor.numel()}) <= 1
