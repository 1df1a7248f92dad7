"""Which choice is tried next: of every kind the plan's best, then sizes of micro-batches around the fastest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from trelm_ds.planning.choices import Choice
from trelm_ds.planning.plan import Plan, Planned
from trelm_ds.planning.verdict import Status

SLACK = 1.2  # times the memory there is: what the plan says needs more is not tried, what needs less may fit


class Tried(NamedTuple):
    """A choice and what came of it."""

    choice: Choice
    status: Status
    tokens_per_s: float | None


def kind_of(choice: Choice) -> Choice:
    """Return what a choice shares with those that differ in the size of micro-batches alone."""
    return choice._replace(micro_batch_tokens=0)


class Candidates:
    """The choices of a plan that may be tried, in turn.

    Args:
        configured: the choice that the settings have, which is tried second, where the plan has it not first.

    Attributes:
        rows: by choice, in the plan's order.
        beyond: rows that are not tried, since they need far more memory than there is.
    """

    def __init__(self, plan: Plan, configured: Choice) -> None:
        self.plan, usable = plan, plan.machine.usable
        within = [row for row in plan.rows if row.memory is not None and row.memory.peak <= SLACK * usable]
        self.rows = _distinct({row.choice: row for row in within}, configured)
        self.beyond = [row for row in plan.rows if row.memory is not None and row.memory.peak > SLACK * usable]
        best: dict[Choice, Choice] = {}
        for choice in self.rows:
            best.setdefault(kind_of(choice), choice)
        first = list(best.values())
        if configured in self.rows:
            first.insert(1, configured)
        self.first = list(dict.fromkeys(first))  # each where it comes first

    def next(self, tried: Sequence[Tried], number: int) -> Planned | None:
        """Return the next row to try; None where `number` were tried, or all.

        The first half are the plan's best of every kind, the one configured among them. Then come the neighbours, in
        size of micro-batches, of the fastest so far; where nothing has run yet, smaller sizes of what ran out of
        memory. When there are none left, the remaining kinds, and then all else in the plan's order.
        """
        if len(tried) >= number:
            return None
        # Not simply the first half: what an earlier start with fewer trials has tried is no kind's best.
        early = sum(one.choice in self.first for one in tried) < (number + 1) // 2
        left = self.left(tried)
        turns = [self.first] if early else []
        turns += [list(self._around(tried)), self.first, list(left)]
        return next((left[choice] for turn in turns for choice in turn if choice in left), None)

    def left(self, tried: Sequence[Tried]) -> dict[Choice, Planned]:
        """Return the rows that may still be tried, in the plan's order."""
        known = {one.choice for one in tried}
        return {
            choice: row
            for choice, row in self.rows.items()
            if choice not in known and not self._hopeless(choice, tried)
        }

    def _around(self, tried: Sequence[Tried]) -> Iterator[Choice]:
        done = [one for one in tried if one.status == "ok" and one.tokens_per_s is not None]
        if done:
            fastest = max(done, key=lambda one: one.tokens_per_s or 0.0).choice
            sizes = self._sizes(fastest)
            place = sizes.index(fastest)
            yield from sizes[place + 1 : place + 2]
            yield from reversed(sizes[max(0, place - 1) : place])
            return
        for one in tried:
            if one.status == "out of memory":
                smaller = [choice for choice in self._sizes(one.choice) if choice < one.choice]
                yield from smaller[-1:]

    def _sizes(self, choice: Choice) -> list[Choice]:
        """List the choices of the same kind, from the smallest micro-batches on."""
        return sorted(other for other in self.rows if kind_of(other) == kind_of(choice))

    def _hopeless(self, choice: Choice, tried: Sequence[Tried]) -> bool:
        """Whether the same with no larger micro-batches has run out of memory."""
        return any(
            one.status == "out of memory"
            and kind_of(one.choice) == kind_of(choice)
            and one.choice.micro_batch_tokens <= choice.micro_batch_tokens
            for one in tried
        )


def _distinct(rows: dict[Choice, Planned], configured: Choice) -> dict[Choice, Planned]:
    """Keep, of the sizes of a kind that hold a whole step and so are one, the smallest, or the one configured."""
    whole = [choice for choice, row in rows.items() if row.micro_batches == 1]
    kept: dict[Choice, Choice] = {}
    for choice in sorted(whole, key=lambda one: (one != configured, one.micro_batch_tokens)):
        kept.setdefault(kind_of(choice), choice)
    return {choice: row for choice, row in rows.items() if row.micro_batches > 1 or choice == kept[kind_of(choice)]}
