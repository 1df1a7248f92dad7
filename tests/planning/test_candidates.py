"""Which choices are tried, in which order."""

from __future__ import annotations

from tests.planning.made_plans import choice, plan_of, planned
from trelm_ds.planning.candidates import Candidates, Tried
from trelm_ds.planning.choices import Choice
from trelm_ds.planning.plan import Planned
from trelm_ds.planning.verdict import Status

# The plan's best of each kind: zero0-4096, zero1-4096, zero2-2048, zero0-4096-recomputed.
ROWS = [
    planned(choice(0, 4096), 100),
    planned(choice(0, 2048), 99),
    planned(choice(1, 4096), 98),
    planned(choice(1, 2048), 97),
    planned(choice(2, 2048), 96),
    planned(choice(0, 8192), 95, 0.55, "needs more"),
    planned(choice(0, 4096, True), 80),
    planned(choice(0, 16384), 75, 0.7, "needs much more"),
    Planned(choice(3, 2048), "cannot be run"),
]


def names(candidates: Candidates, number: int, *outcomes: tuple[str, Status, float | None]) -> list[str]:
    """Names of the choices that follow each other, where outcomes are as said, else as fast as planned."""
    said = {name: (status, speed) for name, status, speed in outcomes}
    tried: list[Tried] = []
    while row := candidates.next(tried, number):
        status, speed = said.get(row.choice.name, ("ok", row.tokens_per_s))
        tried.append(Tried(row.choice, status, speed))
    return [one.choice.name for one in tried]


def made(configured: Choice, rows: list[Planned] = ROWS) -> Candidates:
    return Candidates(plan_of(*rows), configured)


def test_what_needs_a_fifth_more_than_there_is_may_fit() -> None:
    candidates = made(choice(1, 2048))
    assert choice(0, 8192) in candidates.rows
    assert [row.choice.name for row in candidates.beyond] == ["zero0-16384"]
    assert choice(3, 2048) not in candidates.rows


def test_sizes_that_hold_a_whole_step_are_one() -> None:
    rows = [planned(choice(0, tokens), 100, of_step=max(1, 4096 // tokens)) for tokens in (2048, 16384, 8192, 4096)]
    rows += [planned(choice(1, tokens), 90, of_step=1) for tokens in (8192, 4096)]
    assert sorted(made(choice(2, 2048), rows).rows) == [choice(0, 2048), choice(0, 4096), choice(1, 4096)]
    assert sorted(made(choice(0, 8192), rows).rows) == [choice(0, 2048), choice(0, 8192), choice(1, 4096)]


def test_kinds_then_neighbours_of_the_fastest_then_the_other_kinds() -> None:
    # Of six three early ones, the configured one second; then around zero0-4096, the larger first; then a kind.
    assert names(made(choice(1, 2048)), 6) == [
        "zero0-4096", "zero1-2048", "zero1-4096", "zero0-8192", "zero0-2048", "zero2-2048",
    ]  # fmt: skip
    assert names(made(choice(1, 2048)), 99)[:5] == [
        "zero0-4096", "zero1-2048", "zero1-4096", "zero2-2048", "zero0-4096-recomputed",
    ]  # fmt: skip
    assert sorted(names(made(choice(1, 2048)), 99)) == sorted(row.choice.name for row in ROWS[:7])


def test_neighbours_follow_the_fastest_as_it_changes() -> None:
    rows = [planned(choice(0, tokens), 100 - number) for number, tokens in enumerate((1024, 2048, 4096, 8192, 16384))]
    rows.append(planned(choice(1, 1024), 50))
    found = names(made(choice(0, 1024), rows), 5, ("zero0-2048", "ok", 200), ("zero0-4096", "ok", 300))
    # Two early ones; 4,096 is the best, and when 8,192 is slower there is nothing left around it.
    assert found == ["zero0-1024", "zero1-1024", "zero0-2048", "zero0-4096", "zero0-8192"]


def test_what_is_configured_comes_first_where_it_is_the_best() -> None:
    assert names(made(choice(0, 4096)), 4)[:2] == ["zero0-4096", "zero1-4096"]
    assert names(made(choice(0, 2048)), 4)[:2] == ["zero0-4096", "zero0-2048"]


def test_what_is_configured_is_not_tried_where_it_cannot_fit() -> None:
    assert "zero0-16384" not in names(made(choice(0, 16384)), 99)


def test_no_larger_one_follows_what_ran_out_of_memory() -> None:
    found = names(made(choice(0, 2048)), 99, ("zero0-4096", "out of memory", None))
    assert "zero0-8192" not in found
    assert "zero0-2048" in found
    assert "zero0-8192" in names(made(choice(0, 2048)), 99, ("zero0-4096", "crashed", None))


def test_smaller_ones_follow_where_nothing_has_run() -> None:
    early: list[tuple[str, Status, float | None]] = [
        (name, "out of memory", None) for name in ("zero0-4096", "zero1-4096")
    ]
    found = names(made(choice(0, 4096)), 4, *early, ("zero0-2048", "crashed", None))
    assert found == ["zero0-4096", "zero1-4096", "zero0-2048", "zero1-2048"]


def test_nothing_to_try() -> None:
    assert names(made(choice(3, 2048), [ROWS[-1]]), 8) == []


def test_what_fewer_trials_have_tried_is_no_kinds_best() -> None:
    """Of two trials the second is a neighbour; of six, three are still the best of kinds."""
    candidates = made(choice(0, 4096))
    tried = [Tried(choice(0, 4096), "ok", 100.0), Tried(choice(0, 8192), "ok", 95.0)]
    assert names(candidates, 2) == [one.choice.name for one in tried]
    for name in ("zero1-4096", "zero2-2048", "zero0-2048"):
        row = candidates.next(tried, 6)
        assert row is not None
        assert row.choice.name == name
        tried.append(Tried(row.choice, "ok", row.tokens_per_s))
