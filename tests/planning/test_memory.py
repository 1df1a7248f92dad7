"""The planner's closed form against what ranks of real runs hold."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_distributed_test
from tests.forked import ROOT
from trelm_ds.distributed import connect, disconnect
from trelm_ds.planning.memory import memory_of
from trelm_ds.planning.parameters import Parameter, Parameters
from trelm_ds.planning.trace import Trace
from trelm_ds.planning.traffic import of_data_group
from trelm_ds.planning.zero import CORRECTIONS, Zero, held

sys.path.insert(0, str(ROOT / "tools" / "bench"))

from planned_memory import measure, settings

PARAMETERS = Parameters(
    (Parameter("a", 1001, 0), Parameter("b", 500, 0), Parameter("c", 2000, 1, lazy=True), Parameter("d", 7, None)), 11
)


def measured(cases: list[tuple[int, bool, bool]], dataset: Path, folder: Path) -> list[dict[str, Any]]:
    ranks, found = connect(), []
    try:
        for stage, checkpointing, routed in cases:
            own = folder / f"{ranks.rank}-{stage}-{checkpointing}-{routed}"
            own.mkdir()
            config = settings("narrow", stage, checkpointing, routed, "fp32", own)
            found.append(measure(config, str(dataset), ranks))
    finally:
        disconnect()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_ranks_hold_what_is_planned(stage: int, tiny_dataset: Path, tmp_path: Path) -> None:
    for ranks in run_distributed_test(measured, 2, [(stage, stage == 2, stage == 3)], tiny_dataset, tmp_path):
        for case in ranks:
            assert abs(case["states_error"]) < 2, case
            assert abs(case["peak_error"]) < 6, case
            assert case["saved"] == case["saved_planned"] > 0


def test_shares_of_each_stage() -> None:
    """16 bytes an element, of which ZeRO shares out ever more; a count of updates beside lazy AdamW's."""
    trained, lazy = 3501, 2000
    whole = held(PARAMETERS, Zero(0), 4, 2, accumulates=False)
    assert whole.weights == 2 * (trained + 7) + 2 * 11
    assert whole.optimizer == 12 * trained + 2 * lazy + CORRECTIONS
    assert whole.gradients == 2 * trained
    own = 2 * -(-1501 // 8) + 500  # of two groups, each padded to a multiple of twice the ranks
    for stage in (1, 2):
        shared = held(PARAMETERS, Zero(stage, reduce_bucket=100), 4, 2, accumulates=True)
        assert shared.optimizer == 12 * own + 2 * 500 + CORRECTIONS
        # A rank has a part of both of the first two parameters, and a part of the third: of those gradients are whole.
        assert shared.gradients == 2 * (1001 + 500 + 2000)
        assert shared.accumulated == 2 * trained == shared.gradients
        assert shared.buckets == 200
        assert shared.weights == 2 * (4 * own + 7 + 11)
    every = held(PARAMETERS, Zero(3, reduce_bucket=100, persistent=10), 4, 2, accumulates=True)
    parts = 251 + 125 + 500 + 2  # each parameter cut by itself
    assert every.weights == 2 * (parts + 7 + 11)
    assert every.gathered == every.ahead == 2 * trained
    near = held(PARAMETERS, Zero(3, persistent=10, live=1500, prefetch=600), 4, 2, accumulates=True)
    assert (near.gathered, near.ahead) == (2 * 1500, 2 * 600)
    at_need = held(PARAMETERS, Zero(3, persistent=10, prefetch=0, reuse=0), 4, 2, accumulates=True)
    assert (at_need.gathered, at_need.ahead) == (2 * 2000, 0)
    masters = held(PARAMETERS, Zero(0), 1, 4, accumulates=False)
    assert masters.optimizer == 8 * trained + 2 * lazy + CORRECTIONS  # no other masters


def test_offloading_moves_states_to_the_host() -> None:
    here, there = (held(PARAMETERS, Zero(2, offload), 2, 2, accumulates=True) for offload in (False, True))
    assert there.optimizer == there.gradients == 0
    assert there.host >= here.optimizer
    assert there.weights == here.weights


def test_sums_in_fp32() -> None:
    """Under ZeRO 1 whole on every rank and without buckets; else of the rank's share."""
    one, two = (held(PARAMETERS, Zero(stage, fp32_sums=True), 4, 2, accumulates=False) for stage in (1, 2))
    assert one.gradients == one.accumulated == 4 * 3501
    assert one.buckets == 0
    assert two.gradients == 2 * held(PARAMETERS, Zero(2), 4, 2, accumulates=False).gradients
    content = {"zero_optimization": {"stage": 1}, "data_types": {"grad_accum_dtype": "fp32"}}
    assert Zero.of(content).whole_sums
    assert not Zero.of(content).fp32_exchange
    exchanged = [of_data_group(PARAMETERS, 4, Zero(1, fp32_exchange=wide), 2, 3) for wide in (False, True)]
    assert exchanged[1]["all-reduce"] == 2 * exchanged[0]["all-reduce"]
    assert exchanged[1]["all-gather"] == exchanged[0]["all-gather"]


def test_the_worst_moment_is_found() -> None:
    import numpy as np

    live, gradients = np.array([100, 900, 500, 10]), np.array([0, 0, 300, 7002])
    unread = np.array([True, False, False, False])
    passes = Trace(800, live, gradients, unread, np.zeros(1), np.zeros(1))
    one = memory_of(PARAMETERS, Zero(0), 1, 2, passes, accumulates=False, at_once=False)
    assert one.passes == one.weights + one.optimizer + 2 * 7002  # all gradients, and a copy of them that is reduced
    several = memory_of(PARAMETERS, Zero(0), 1, 2, passes, accumulates=True, at_once=False)
    assert several.passes == several.weights + several.optimizer + 2 * 7002  # they are there from the start
    cut = memory_of(PARAMETERS, Zero(1, reduce_bucket=100), 1, 2, passes, accumulates=True, at_once=False)
    assert cut.passes == cut.weights + cut.optimizer + 2 * 7002 + 200  # those of its part, and a bucket
    early = memory_of(PARAMETERS, Zero(2, reduce_bucket=100), 1, 2, passes, accumulates=True, at_once=False)
    assert early.passes == early.weights + early.optimizer + 2 * 7002 + 500 + 200  # reduced as they come
    assert several.states == several.weights + several.optimizer + several.reduced
    for memory in (one, several):
        parts = memory.weights, memory.optimizer, memory.gradients, memory.buckets, memory.activations, memory.temporary
        assert sum(parts) == memory.passes <= memory.peak
        assert memory.largest() == "optimizer states"
