"""What tuning has found as a table, a picture and files: planned against measured, and the best choice."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from trelm_ds.files import write_atomically
from trelm_ds.planning.candidates import SLACK, kind_of
from trelm_ds.planning.choices import Choice
from trelm_ds.planning.hardware import CPU, GIB
from trelm_ds.planning.plan import Plan
from trelm_ds.planning.trials import Result
from trelm_ds.planning.tune import Tuned

_LEAST = 4  # trials that a rank correlation is stated of
_REASON = 100  # characters of one in the table


def rank_correlation(results: Iterable[Result]) -> float | None:
    """Return Spearman's correlation of planned and measured speeds; None for fewer than four, or all equal."""
    from scipy.stats import spearmanr

    pairs = [(one.planned.tokens_per_s, one.outcome.tokens_per_s) for one in results]
    if len(pairs) < _LEAST or any(len(set(values)) == 1 for values in zip(*pairs, strict=True)):
        return None
    found = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    return None if math.isnan(found) else found


def tuned_to_table(tuned: Tuned) -> Group:
    """Render the trials, the fastest first, what was not tried, and how the plan's order compares."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("choice", "tokens/s planned", "measured", "GiB planned", "measured", "seconds", "status"):
        table.add_column(name, justify="left" if name in ("choice", "status") else "right", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for result in sorted(tuned.results, key=_order):
        table.add_row(*_cells(result), style="bold" if result is tuned.best else "")
    return Group(Text(_heading(tuned.plan)), table, *map(Text, _remarks(tuned)))


def _order(result: Result) -> tuple[bool, float]:
    return result.outcome.status != "ok", -(result.outcome.tokens_per_s or 0.0)


def _cells(result: Result) -> list[str]:
    planned, outcome = result.planned, result.outcome
    reason = outcome.reason if len(outcome.reason) <= _REASON else f"{outcome.reason[: _REASON - 3]}..."
    return [
        result.choice.name,
        f"{planned.tokens_per_s:,.0f}" if planned.tokens_per_s else "",
        "" if outcome.tokens_per_s is None else f"{outcome.tokens_per_s:,.0f}",
        "" if planned.memory is None else f"{planned.memory.peak / GIB:.2f}",
        "" if outcome.peak_bytes is None else f"{outcome.peak_bytes / GIB:.2f}",
        f"{outcome.seconds:.0f}",
        outcome.status,
        reason,
    ]


def _heading(plan: Plan) -> str:
    machine = plan.machine
    of_what = "on a CPU measured GiB are those of the whole process" if machine.device.name == CPU else "of each GPU"
    room = f"{machine.usable / GIB:.2f} GiB for tensors each"
    return f"{machine.per_node} x {machine.device.name}, {room}; tokens of text per second over all ranks; {of_what}"


def _remarks(tuned: Tuned) -> list[str]:
    lines = [f"as the settings have it: {tuned.configured.name}"]
    if (found := rank_correlation(tuned.done)) is not None:
        about = f"planned and measured speed of {len(tuned.done)} trials"
        lines.append(f"Spearman's rank correlation of {about}: {found:.2f}")
    if tuned.beyond:
        least: dict[Choice, int] = {}
        for kind, tokens in ((kind_of(row.choice), row.choice.micro_batch_tokens) for row in tuned.beyond):
            least[kind] = min(tokens, least.get(kind, tokens))
        names = ", ".join(kind._replace(micro_batch_tokens=tokens).name for kind, tokens in least.items())
        over = f"over {SLACK - 1:.0%} more memory than there is"
        lines.append(f"not tried, {len(tuned.beyond)} choices that the plan gives {over}: from {names} on")
    if tuned.left:
        lines.append(f"not tried, {tuned.left} other choices: more --trials or --budget-minutes go on from here")
    return lines


def results_to_plain(tuned: Tuned) -> dict[str, Any]:
    """Convert to what JSON holds: bytes, seconds, tokens of text per second."""
    machine, best = tuned.plan.machine, tuned.best
    return {
        "device": machine.device._asdict(),
        "ranks": machine.per_node,
        "usable_bytes": machine.usable,
        "configured": tuned.configured.name,
        "best": None if best is None else best.choice.name,
        "rank_correlation": rank_correlation(tuned.done),
        "not_tried": {"too_large": [row.choice.name for row in tuned.beyond], "left": tuned.left},
        "trials": [result.to_plain() for result in tuned.results],
    }


def write_results(tuned: Tuned, file: Path) -> None:
    """Write all of it to a JSON file."""
    write_atomically(file, json.dumps(results_to_plain(tuned), indent=1) + "\n")


def plot_tuned(results: list[Result], out: Path) -> None:
    """Draw measured speeds over planned ones, and the line on which they are equal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    planned = [result.planned.tokens_per_s for result in results]
    measured = [result.outcome.tokens_per_s or 0.0 for result in results]
    axes.scatter(planned, measured, color="tab:blue", zorder=3)
    for result, x, y in zip(results, planned, measured, strict=True):
        axes.annotate(result.choice.name, (x, y), textcoords="offset points", xytext=(5, 3), fontsize=7)
    top = 1.15 * max([*planned, *measured], default=1.0)
    axes.plot([0, top], [0, top], color="tab:gray", linestyle="--", linewidth=1, label="measured = planned")
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    axes.set_xlabel("tokens of text per second, planned")
    axes.set_ylabel("measured")
    found = rank_correlation(results)
    axes.set_title("" if found is None else f"rank correlation {found:.2f}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out, dpi=120)
