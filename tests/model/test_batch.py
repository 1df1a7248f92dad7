"""Records: what moves to a device and what stays, and what counts as a target."""

from __future__ import annotations

from typing import NamedTuple

import torch

from tests.model.test_assessing import facts
from tests.model.tiny_models import make_documents, pack_batch
from trelm_ds.model import Batch, KnowledgeItems, Tail, map_tensors


def items() -> KnowledgeItems:
    numbers = torch.arange(2)
    return KnowledgeItems(
        memory=numbers,
        window=torch.tensor([[1, 3], [7, 9]]),
        cls=numbers,
        new_context=numbers > 0,
        entity=numbers,
        relation=numbers,
        sign=numbers.float(),
        token_rows=numbers + 1,
        token_items=numbers,
    )


def full() -> Batch:
    batch = pack_batch(make_documents([6, 11, 3]), [2, 8], [11, 12])
    return batch._replace(n_sequences=2, tail=Tail(1, 3, 3), items=items(), objectives={"cka": facts()})


def test_the_windows_of_items_stay_on_the_cpu() -> None:
    batch, device = full(), torch.device("meta")
    moved = batch.to(device)
    assert moved.items is not None
    assert batch.items is not None
    assert moved.items.window is batch.items.window
    tensors = [*moved[:2], *moved[3:5], *moved.items._replace(window=moved.items.cls), *moved.objectives["cka"]]
    assert {tensor.device for tensor in tensors} == {device}
    assert moved[5:7] == batch[5:7] == (2, Tail(1, 3, 3))
    assert moved.max_seqlen == 11
    assert {tensor.device.type for tensor in batch.objectives["cka"]} == {"cpu"}  # the batch itself stays


def test_a_batch_without_items_moves_too() -> None:
    moved = full()._replace(items=None).to(torch.device("meta"))
    assert moved.items is None
    assert moved.input_ids.is_meta


def test_targets_are_counted_by_objective() -> None:
    batch = full()
    assert batch.targets == {"mlm": 2, "cka": 6}
    assert list(batch.targets) == ["mlm", "cka"]
    assert batch._replace(objectives={}).targets == {"mlm": 2}


def test_documents_of_which_nothing_is_predicted() -> None:
    batch = pack_batch(make_documents([6, 11]))
    assert batch.targets == {"mlm": 0}
    assert batch.n_sequences == 2
    assert (batch.tail, batch.items, batch.objectives) == (None, None, {})


class Pair(NamedTuple):
    first: torch.Tensor
    second: object


def test_nested_containers_keep_their_shape() -> None:
    one, two, three = (torch.tensor(number) for number in (1, 2, 3))
    value = {"a": [Pair(one, None), 7], "b": {"c": Pair(two, {"d": three})}, "e": "text"}
    seen = []
    changed = map_tensors(value, lambda tensor: seen.append(tensor) or tensor * 10)
    assert changed == {"a": [Pair(one * 10, None), 7], "b": {"c": Pair(two * 10, {"d": three * 10})}, "e": "text"}
    assert isinstance(changed["a"][0], Pair)
    assert list(changed) == ["a", "b", "e"]
    assert [tensor.item() for tensor in seen] == [1, 2, 3]
    assert map_tensors(["x", 3], str.upper, str) == ["X", 3]
