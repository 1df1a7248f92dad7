"""A plan as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from tests.planning.made_plans import choice, plan_of, planned
from trelm_ds.planning import Choice, Planned, plot, to_table
from trelm_ds.planning.hardware import GIB
from trelm_ds.planning.shown import best_of_each


def shown(rows: Sequence[Planned], configured: Choice, everything: bool = False) -> str:
    console = Console(width=200, highlight=False)
    with console.capture() as captured:
        console.print(to_table(plan_of(*rows), configured, everything))
    return captured.get()


def rows_of(text: str) -> list[list[str]]:
    """Return the cells of rows: all steps take a second."""
    return [line.split() for line in text.splitlines() if " 1 s " in line]


FAST, SMALL = planned(choice(0, 4096), 200), planned(choice(0, 2048), 100)
NEAR = planned(choice(2, 2048), 90, 0.6, "needs 0.1 GiB more; weights are most of it")
FAR = planned(choice(2, 4096), 300, 9.0, "needs 8.5 GiB more; weights are most of it")


def test_of_every_kind_the_best_and_what_the_settings_have() -> None:
    plan = plan_of(FAST, SMALL, NEAR, FAR)
    assert best_of_each(plan) == [FAST, NEAR]
    text = shown(plan.rows, SMALL.choice)
    first, mine = rows_of(text)
    assert first[:5] == ["0", "1", "4,096", "2", "200"]
    assert mine[:6] == ["*", "0", "1", "2,048", "2", "100"]
    assert "*: as the settings have it\n" in text.replace(" \n", "\n")
    assert "  1 kinds: not enough memory; the nearest, zero2-2048, needs 0.1 GiB more" in text
    everything = shown(plan.rows, SMALL.choice, everything=True)
    assert len(rows_of(everything)) == 2
    assert "  2 choices: not enough memory; the nearest, zero2-2048, needs 0.1 GiB more" in everything


def test_a_choice_configured_that_does_not_fit() -> None:
    text = shown([FAST, NEAR], NEAR.choice)
    assert [row[0] for row in rows_of(text)] == ["0", "*"]
    assert f"*: as the settings have it, which {NEAR.problem}" in text
    never = Planned(choice(1, 2048), "trainer.global_batch_size: odd")
    text = shown([never], never.choice)
    assert "Nothing fits." in text
    assert "*: as the settings have it, which cannot be run: trainer.global_batch_size: odd" in text
    assert "  1 kinds: trainer.global_batch_size: odd" in text


def test_more_kinds_than_rows() -> None:
    kinds = [planned(Choice(stage, False, tensor, 2048, again), 1.0)
             for stage in range(4) for tensor in (1, 2) for again in (False, True)]  # fmt: skip
    text = shown(kinds, kinds[-1].choice)
    assert len(rows_of(text)) == 13  # twelve and the one configured
    assert "3 more kinds fit (--all lists them, with every size of micro-batch)" in text
    assert "more kinds" not in shown(kinds, kinds[-1].choice, everything=True)


@pytest.mark.parametrize(("gib", "cells", "unit"), [(0.25, ["256", "256"], "MiB"), (2.0, ["2.00", "-1.50"], "GiB")])
def test_small_models_are_in_mib(gib: float, cells: list[str], unit: str) -> None:
    text = shown([planned(choice(1, 2048), 1.0, gib)], choice(1, 2048))
    assert rows_of(text)[0][-8:-6] == cells  # peak, and what is free of half a GiB
    assert f"from peak on: {unit} of each rank" in text


def test_what_the_host_holds_has_a_column_where_there_is_something() -> None:
    offloaded = planned(choice(2, 2048)._replace(offload=True), 1.0, 2.0)
    assert offloaded.memory is not None
    offloaded = offloaded._replace(memory=offloaded.memory._replace(host=3 * GIB))
    text = shown([FAST, offloaded], FAST.choice)
    assert "of node's CPU" in text
    assert "GiB of each rank, in the last column of a node;" in text
    assert [row[-1] for row in rows_of(text)] == ["0.00", "3.00"]
    assert "of node's CPU" not in shown([FAST], FAST.choice)


def test_speeds_of_slow_devices_have_figures() -> None:
    text = shown([FAST], FAST.choice)
    assert "reckoned with 80% of 1 GFLOP/s fp32, 1 GFLOP/s bf16, 85% of 1 GB/s, 1 GB/s between ranks" in text


@pytest.mark.parametrize(("gib", "dashed"), [(0.01, False), (0.2, True), (9.0, True)])
def test_a_picture_shows_the_end_of_the_memory_where_it_is_near(tmp_path: Path, gib: float, dashed: bool) -> None:
    plot(plan_of(planned(choice(1, 2048), 1.0, gib)), tmp_path / "plan.svg")
    drawn = (tmp_path / "plan.svg").read_text()
    title = "GiB of each rank, 1 x 1 this CPU, of 0.5 GiB"
    assert f"<!-- {title}{' (dashed)' if dashed else ''} -->" in drawn
