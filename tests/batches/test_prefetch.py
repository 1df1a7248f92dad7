"""Which micro-batch is copied when, and who waits for whom; on the CPU with a stand-in for the stream."""

from __future__ import annotations

import pytest
import torch

from tests.streams import NotedStream
from trelm_ds.batches import DevicePrefetcher, prefetch
from trelm_ds.model import Batch, KnowledgeItems, map_tensors

CPU = torch.device("cpu")


def batch(number: int) -> Batch:
    """One with tensors at every depth."""
    one = Batch.of_documents(torch.tensor([number, 2, 3]), torch.tensor([0, 3], dtype=torch.int32), 3)
    whole = torch.arange(number)
    items = KnowledgeItems(*(whole for _ in KnowledgeItems._fields))
    return one._replace(items=items, objectives={"cka": (torch.tensor([number]),)})


def tensors(of: Batch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    map_tensors(of, found.append)
    return found


@pytest.fixture
def side(monkeypatch: pytest.MonkeyPatch) -> NotedStream:
    """Notes copies as well, each on the stream on which it is made."""
    stream = NotedStream()
    monkeypatch.setattr(prefetch, "side_stream", lambda device: stream)

    def to(self: Batch, device: torch.device) -> Batch:
        stream.notes.append(f"copy of {int(self.input_ids[0])} on {'side' if stream.on else 'main'}")
        copied: Batch = map_tensors(self, torch.Tensor.clone)
        return copied

    monkeypatch.setattr(Batch, "to", to)
    return stream


def test_the_next_is_on_its_way_before_the_current_computes(side: NotedStream) -> None:
    for copied in DevicePrefetcher(CPU)([batch(1), batch(2), batch(3)]):
        assert not side.on
        side.notes.append(f"step on {int(copied.input_ids[0])}")
    assert side.notes == [
        "copy of 1 on side",
        "trainer: marks side 1",
        "copy of 2 on side",
        "trainer: marks side 2",
        "trainer: main waits for side 1",
        "step on 1",
        "copy of 3 on side",
        "trainer: marks side 3",
        "trainer: main waits for side 2",
        "step on 2",
        "trainer: main waits for side 3",
        "step on 3",
    ]


def test_memory_stays_until_the_step_has_used_it(side: NotedStream) -> None:
    for number, copied in enumerate(DevicePrefetcher(CPU)([batch(1), batch(2)]), 1):
        # Of this one and those before, not yet of the next.
        assert [*map(id, side.kept[-len(tensors(copied)) :])] == [*map(id, tensors(copied))]
        assert len(side.kept) == number * len(tensors(copied))


@pytest.mark.parametrize("count", [0, 1])
def test_few(side: NotedStream, count: int) -> None:
    assert len([*DevicePrefetcher(CPU)([batch(1)] * count)]) == count
    assert sum(note.startswith("copy") for note in side.notes) == count


def test_on_the_cpu_they_are_handed_on_as_they_are() -> None:
    stored = [batch(1), batch(2)]
    for before, after in zip(stored, DevicePrefetcher(CPU)(stored), strict=True):
        assert all(one is other for one, other in zip(tensors(before), tensors(after), strict=True))
