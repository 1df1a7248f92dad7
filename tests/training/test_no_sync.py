"""A step gives the GPU its work without waiting for it: shown on device `meta`, which has no values to wait for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.test_knowledge import with_cka
from tests.training.test_routing import config
from trelm_ds.batches import StepLoader
from trelm_ds.config import Config
from trelm_ds.distributed import OneProcess, Ranks
from trelm_ds.knowledge.tables import MemoryBank, TableGroup, VectorTable
from trelm_ds.model import KnowledgePath, MaskedLanguageModel
from trelm_ds.training.dataset import open_dataset
from trelm_ds.training.knowledge import StepLookup, _log_counts
from trelm_ds.training.metrics import Window
from trelm_ds.training.model import build_model

META = torch.device("meta")


class NoWaiting(TorchDispatchMode):
    """Fails where the host copies to the device in a way that waits; everything else that waits fails on `meta`."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        copied = func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu"
        if copied and torch.device(kwargs.get("device") or "cpu").type == "meta":
            assert kwargs.get("non_blocking"), "a copy to the device waits: see trelm_ds.streams"
            self.copies += 1
        if func is torch.ops.aten.copy_.default and args[0].device.type == "meta":
            assert args[1].device.type == "meta", "a copy into a tensor of the device waits"
        return func(*args, **kwargs)


def test_the_mode_notices() -> None:
    numbers = torch.ones(3)
    for waits, error, match in (
        (lambda: numbers.to(META), AssertionError, "a copy to the device waits"),
        (lambda: torch.zeros(3, device=META).copy_(numbers), AssertionError, "a copy into a tensor of the device"),
        (lambda: torch.zeros(3, device=META).sum().item(), RuntimeError, "item"),
        (lambda: torch.zeros(3, device=META).nonzero(), NotImplementedError, "nonzero"),
        (lambda: torch.zeros(3, device=META) + numbers, RuntimeError, "device"),
    ):
        with NoWaiting(), pytest.raises(error, match=match):
            waits()


@pytest.mark.parametrize(
    ("decoder", "changes"),
    [
        ("query", {}),
        ("query", {"negatives": 0}),
        ("query", {"log_q": True}),
        ("product", {}),
    ],
)
@pytest.mark.parametrize("path", ["intermediate", "full"])
def test_a_whole_step(decoder: str, changes: dict[str, Any], path: str, one_rank: Ranks, tiny_dataset: Path) -> None:
    settings = with_cka(config(), decoder=decoder, **changes)
    opened = open_dataset(settings, str(tiny_dataset), one_rank)
    steps = StepLoader(opened.steps, 0, 2, 0)
    model, tables = on_meta(settings, opened)
    for layer in model.encoder.blocks:
        everything = torch.ones(model.config.hidden_size, dtype=torch.bool, device=META)
        full = (everything, everything, torch.zeros(2, device=META)) if path == "full" else ()
        layer.feed_forward.path = KnowledgePath(torch.arange(12, device=META), *full)
    window = Window()
    for _ in range(2):
        step = next(steps)
        with NoWaiting() as mode:
            lookup = StepLookup(
                step=step,
                vectors=tables[0],
                bank=tables[1],
                word_norm=torch.ones((), device=META),
                memory_lambda=0.5,
                h_e_weight=settings.injection.weight,
                size=model.config.hidden_size,
                log_counts=tables[2],
                ranks=OneProcess(META),
            )
            for stored in step.micro_batches:
                batch = stored.to(META)
                output = model(batch, tables=lookup.tables())
                sum(output.losses.values()).backward()  # type: ignore[union-attr]
                assert batch.items is not None
                lookup.observe(batch.items, output.states)
                window.add(batch, output)
            window.count(lookup.update())
            assert mode.copies > 10
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert window.counts["cka_targets"] > 0


def on_meta(settings: Config, opened: Any) -> tuple[MaskedLanguageModel, tuple[VectorTable, MemoryBank, Any]]:
    """Build model, vectors, bank and log counts on the device, as a run has them there."""
    model = build_model(settings, opened).to(META).train()
    annotator = opened.prepared.annotator
    index, size = annotator.index, model.config.hidden_size
    vectors = VectorTable(len(index.vector_entities), index.n_relations, size, torch.float32, META, TableGroup())
    bank = MemoryBank(index.n_memory, size, replace(settings.memory, global_update="mean"), META, TableGroup())
    counts = _log_counts(settings, annotator, torch.device("cpu"))
    return model, (vectors, bank, None if counts is None else counts.to(META))
