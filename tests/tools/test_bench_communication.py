"""The closed form of `communication.py` against the bytes of a real run; what is computed with it, and its page."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.distributed import run_distributed_test
from tests.forked import ROOT
from trelm_ds.distributed import connect, disconnect
from trelm_ds.model import EncoderConfig
from trelm_ds.planning.traffic import MicroBatch, on_the_wire
from trelm_ds.planning.zero import Zero

sys.path.insert(0, str(ROOT / "tools" / "bench"))

from communication import MARK, PAGE, Counted, check, count, settings, table
from communication_model import LAYOUTS, LINKS, RELEASED, Layout, crossing, of_step, seconds, shape
from exchanged import CONTROL, DATA, TENSOR

PAIR = Layout(2, 1)


def counted(zero: Zero, data: Path, folder: Path) -> tuple[EncoderConfig, list[Counted]]:
    ranks = connect()
    own = folder / str(ranks.rank)
    own.mkdir()
    try:
        return count(settings(zero, PAIR.tensor, "fp32", own), data, folder / "run", ranks)
    finally:
        disconnect()


@pytest.mark.slow
def test_what_ranks_that_share_a_model_hand_over(tiny_dataset: Path, tmp_path: Path) -> None:
    """To the byte, in steps of different numbers of tokens and micro-batches."""
    zero = Zero(2)
    (sizes, steps), (_, others) = run_distributed_test(counted, 2, zero, tiny_dataset, tmp_path)
    assert steps == others  # they have the same tokens
    assert len({len(step.micro_batches) for step in steps}) > 1
    for step in steps:
        check(step, sizes, PAIR, zero, 4)
        assert step.handed[TENSOR].keys() == {"all-reduce"}
        assert sum(step.handed[CONTROL].values()) < 100
        assert DATA not in step.handed  # a group of one
    first, *rest = steps[0].micro_batches
    more = steps[0]._replace(micro_batches=[first._replace(targets=first.targets + 1), *rest])
    with pytest.raises(SystemExit, match="nothing is computed"):
        check(more, sizes, PAIR, zero, 4)


def test_rings() -> None:
    assert [on_the_wire(800, kind, 4) for kind in ("all-reduce", "all-gather", "reduce-scatter")] == [1200, 600, 600]
    assert on_the_wire(800, "all-reduce", 1) == 0


@pytest.mark.parametrize("zero", [Zero(1), RELEASED])
@pytest.mark.parametrize("link", LINKS)
def test_the_crossing_is_where_times_are_equal(zero: Zero, link: str) -> None:
    alone, shared = LAYOUTS
    sizes, speeds = shape("base"), LINKS[link]
    tokens = crossing(sizes, zero, speeds)
    expected = seconds(sizes, alone, zero, tokens, speeds)
    assert seconds(sizes, alone, zero, 10 * tokens, speeds) == expected  # data parallelism sends parameters only
    assert (
        seconds(sizes, shared, zero, tokens - 10, speeds) < expected < seconds(sizes, shared, zero, tokens + 10, speeds)
    )


def test_accumulation_costs_what_the_stage_says() -> None:
    """ZeRO 1 exchanges once a step, 2 reduces and 3 does all in every micro-batch."""
    layout, batch = Layout(1, 4), MicroBatch(100, 15)
    for zero, kinds in (
        (Zero(1), set()),
        (Zero(2), {"all-reduce"}),
        (Zero(3, persistent=0), {"all-gather", "reduce-scatter"}),
    ):
        once, twice = (of_step(shape("base"), layout, zero, 2, [batch] * number)[DATA] for number in (1, 2))
        assert {kind for kind in once if twice[kind] == 2 * once[kind]} == kinds


def test_the_page_has_the_table_of_the_result() -> None:
    result = json.loads((ROOT / "docs" / "benchmarks" / "communication.json").read_text())
    page = PAGE.read_text()
    assert f"<!-- {MARK} -->\n{table(result)}\n<!-- /{MARK} -->" in page
    assert {row["layout"] for row in result["counted"]} == {layout.name for layout in LAYOUTS}
