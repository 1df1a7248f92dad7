"""Ranks that share a model and have drifted apart are named."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from tests.distributed import run_distributed_test
from trelm_ds import log
from trelm_ds.distributed import Ranks, connect, disconnect
from trelm_ds.tensor_ranks import split
from trelm_ds.training.same_weights import SameWeights, checksums


def model() -> nn.Module:
    """A cut parameter, which differs between ranks, and two that are whole."""
    found = nn.Module()
    found.feed_forward = nn.Module()
    found.feed_forward.keys = nn.Parameter(torch.randn(2, 2))
    found.feed_forward.value_bias = nn.Parameter(torch.tensor([1.0, -0.0]))
    found.norm = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    layers: Any = nn.ModuleDict({"layers": found})
    return layers


def place(rank: int) -> Any:
    """Of one rank among those with the same part."""
    return SimpleNamespace(data=SimpleNamespace(rank=rank), device=torch.device("cpu"))


def test_any_bit_counts() -> None:
    same, other = model(), model()
    names, sums = checksums(same, place(0))
    assert names == ["layers.norm", "layers.feed_forward.value_bias"]
    assert torch.equal(sums, checksums(other, place(0))[1])
    with torch.no_grad():
        other.get_parameter("layers.feed_forward.value_bias")[1] = 0.0  # not -0.0
        other.get_parameter("layers.norm")[2] = torch.nan
    assert (sums != checksums(other, place(0))[1]).all()


def test_padding_of_zero_3_does_not_count() -> None:
    """Of 3 elements on 2 ranks the second has one."""
    pieces = nn.Parameter(torch.zeros(0))
    pieces.ds_tensor, pieces.ds_numel = torch.tensor([2.0, torch.nan]), 3  # type: ignore[attr-defined]
    whole = nn.Module()
    whole.norm = pieces
    assert checksums(whole, place(1))[1].tolist() == [torch.tensor(2.0).view(torch.int32).item()]
    assert checksums(whole, place(0))[1] != checksums(whole, place(1))[1]


def compared(drifting: int) -> list[str]:
    """What rank 0 says at three log points, before the second of which one rank drifts."""
    ranks = split(connect(), 2)
    said: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log.logger.addHandler(listener)
    engine: Any = SimpleNamespace(module=model())
    check = SameWeights(engine, ranks)
    for point in range(3):
        if point == 1 and ranks.rank == drifting:
            with torch.no_grad():
                engine.module.get_parameter("layers.norm")[0] = 2
        check.after_step(taken=True)
        assert check.metrics(1.0) == {}
        assert point or not said
    disconnect()
    return said


def test_the_ranks_are_named_once() -> None:
    first, *others = run_distributed_test(compared, 4, 3)
    assert len(first) == 1
    assert first[0].startswith("model.tensor_parallel: ranks 2 to 3 share a model, but differ in layers.norm, 2 steps ")
    assert others == [[]] * 3


def test_nothing_is_compared_without_tensor_parallelism(one_rank: Ranks) -> None:
    assert SameWeights(SimpleNamespace(module=None), one_rank).metrics(1.0) == {}  # type: ignore[arg-type]
