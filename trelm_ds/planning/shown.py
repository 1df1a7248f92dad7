"""A plan as a table, as JSON, and as a picture."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from trelm_ds.planning.choices import Choice
from trelm_ds.planning.hardware import BANDWIDTH_SHARE, CPU, GB, GIB, MATMUL_SHARE, MIB
from trelm_ds.planning.memory import Memory
from trelm_ds.planning.plan import Machine, Plan, Planned

_SHOWN = 12  # rows
# Head of a column, and the parts of the memory in it.
_COLUMNS = {
    "weights": ("weights",),
    "optim.": ("optimizer",),
    "grad.": ("gradients",),
    "buckets": ("buckets",),
    "activ.": ("activations",),
    "other": ("temporary", "tables"),
}
# Part of the memory, its name in tables, its colour in pictures.
_PARTS = (
    ("weights", "weights", "#4c72b0"),
    ("optimizer", "optimizer", "#55a868"),
    ("tables", "tables", "#8172b3"),
    ("gradients", "gradients", "#c44e52"),
    ("buckets", "buckets", "#937860"),
    ("activations", "activations", "#dd8452"),
    ("temporary", "temporary", "#8c8c8c"),
)


def best_of_each(plan: Plan) -> list[Planned]:
    """Keep, of rows that differ in the size of micro-batches alone, the best one; in the plan's order."""
    found: dict[Any, Planned] = {}
    for row in plan.rows:
        found.setdefault(row.choice._replace(micro_batch_tokens=0), row)
    return list(found.values())


def to_table(plan: Plan, configured: Choice, everything: bool = False) -> Group:
    """Render a plan: what was reckoned with, what fits, why the others do not.

    Args:
        configured: the choice that the settings have, which is marked.
        everything: list every row, not only the best ones.
    """
    rows = plan.rows if everything else best_of_each(plan)
    fitting = [row for row in rows if not row.problem]
    listed = fitting if everything else fitting[:_SHOWN]
    mine = next((row for row in plan.rows if row.choice == configured), None)
    if mine is not None and mine.memory is not None and mine not in listed:
        listed = [*listed, mine]
    lines = [Text(line) for line in _about(plan)]
    if not fitting:
        lines.append(Text("Nothing fits.", style="bold"))
    left = sum(row not in listed for row in fitting)
    more = [Text(f"{left} more kinds fit (--all lists them, with every size of micro-batch)")] if left else []
    mark = [Text(f"*: as the settings have it{_but(mine)}")] if mine else []
    shown = [_table(listed, configured, plan.machine)] if listed else []
    return Group(*lines, *shown, *mark, *more, *_problems(rows, "choices" if everything else "kinds"))


def _but(row: Planned) -> str:
    """Say why a row is none to take, after its name; nothing where it fits."""
    if not row.problem:
        return ""
    return f", which {row.problem}" if row.memory is not None else f", which cannot be run: {row.problem}"


def _table(rows: list[Planned], configured: Choice, machine: Machine) -> Group:
    """Render rows, in MiB where all of them are small, with a column for the node's CPU where one offloads to it."""
    most = max(_memory(row).peak for row in rows)
    unit, digits, name = (GIB, 2, "GiB") if most >= GIB else (MIB, 0, "MiB")
    on_host = ["of node's CPU"] if any(row.choice.offload for row in rows) else []
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    heads = ("", "ZeRO", "TP", "micro-batch", "per step", "recompute", "tokens/s", "MFU", "step", "peak", "free")
    for head in (*heads, *_COLUMNS, *on_host):
        table.add_column(head, justify="right")
    for row in rows:
        mine, memory = row.choice == configured, _memory(row)
        held = [memory.peak, machine.usable - memory.peak]
        held += [sum(getattr(memory, part) for part in parts) for parts in _COLUMNS.values()]
        held += [memory.host * machine.per_node] if row.choice.offload else []
        style = "bold" if mine else ("dim" if row.problem else "")
        cells = (f"{value / unit:,.{digits}f}" for value in held)
        table.add_row("*" if mine else "", *_cells(row), *cells, style=style)
    but = ", in the last column of a node" if on_host else ""
    legend = f"from peak on: {name} of each rank{but}; docs/planning.md explains the columns"
    return Group(table, Text(legend))


def _cells(row: Planned) -> list[str]:
    choice, time = row.choice, row.time
    assert time is not None
    return [
        f"{choice.stage}{' offload' if choice.offload else ''}",
        str(choice.tensor),
        f"{choice.micro_batch_tokens:,}",
        str(row.micro_batches),
        "yes" if choice.checkpointing else "",
        f"{row.tokens_per_s:,.0f}",
        f"{row.mfu:.0%}",
        f"{time.total:.3g} s" if time.total >= 1 else f"{1000 * time.total:.3g} ms",
    ]


def _about(plan: Plan) -> list[str]:
    machine = plan.machine
    device = machine.device
    many = f"{machine.nodes} x {machine.per_node} {device.name}"
    usable = f"{device.memory / GIB:.0f} GiB each, of which tensors get {machine.usable / GIB:.1f}"
    speeds = ", ".join(f"{_flops(value)} {precision}" for precision, value in device.flops.items())
    links = f"{device.node_link / GB:,.4g} GB/s to GPUs of the node, {device.network / GB:,.4g} to other nodes"
    if device.name == CPU:
        links = f"{device.node_link / GB:,.4g} GB/s between ranks"
    return [
        f"{many}: {usable}; a step has {plan.step_tokens:,.0f} tokens of text",
        f"reckoned with {MATMUL_SHARE:.0%} of {speeds}, {BANDWIDTH_SHARE:.0%} of {device.bandwidth / GB:,.4g} GB/s, "
        f"{links}",
        *plan.notes,
    ]


def _flops(value: float) -> str:
    return f"{value / 1e12:,.4g} TFLOP/s" if value >= 1e12 else f"{value / 1e9:,.4g} GFLOP/s"


def _problems(rows: list[Planned], what: str) -> list[Text]:
    """Say what does not fit and why, briefly: one line for each reason, with how many it keeps out.

    Args:
        rows: in the plan's order, so that what lacks least memory comes first.
        what: name of what they are.
    """
    counted: Counter[str] = Counter()
    examples: dict[str, Planned] = {}
    for row in rows:
        if row.problem:
            reason = "not enough memory" if row.memory is not None else row.problem
            counted[reason] += 1
            examples.setdefault(reason, row)
    lines = [Text("what does not fit:")] if counted else []
    for reason, number in counted.most_common():
        example = examples[reason]
        nearest = f"; the nearest, {example.choice.name}, {example.problem}" if example.memory is not None else ""
        lines.append(Text(f"  {number} {what}: {reason}{nearest}"))
    return lines


def print_table(shown: Group) -> None:
    """Print a table, on its whole width where no terminal folds it."""
    # What stands in it, as the reasons of trials, is no markup: `[/tmp/x]` would end a style that nobody began.
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 200
    with console.capture() as captured:
        console.print(shown)
    print(captured.get(), end="")  # not by rich, which ends the program by itself where nobody reads


def to_plain(plan: Plan) -> dict[str, Any]:
    """Convert a plan to what JSON holds: bytes, seconds."""
    machine = plan.machine
    return {
        "machine": {
            "nodes": machine.nodes, "gpus_per_node": machine.per_node, "usable_bytes": machine.usable,
            **machine.device._asdict(),
        },
        "assumed": {"matmul_share": MATMUL_SHARE, "bandwidth_share": BANDWIDTH_SHARE, "notes": plan.notes},
        "step_tokens": plan.step_tokens,
        "choices": [row_to_plain(row) for row in plan.rows],
    }  # fmt: skip


def row_to_plain(row: Planned) -> dict[str, Any]:
    """Convert one choice."""
    found: dict[str, Any] = {"name": row.choice.name, **row.choice._asdict(), "problem": row.problem}
    if row.memory is None or row.time is None:
        return found
    memory = {**row.memory._asdict(), "peak": row.memory.peak}
    return found | {
        "memory_bytes": memory,
        "micro_batches": row.micro_batches,
        "seconds": {**row.time._asdict(), "total": row.time.total},
        "tokens_per_s": row.tokens_per_s,
        "mfu": row.mfu,
        "bytes_per_step": row.traffic,
    }


def plot(plan: Plan, out: Path) -> None:
    """Draw the memory of a GPU as stacked bars, a bar for the best of each kind, beside what there is."""
    from matplotlib.figure import Figure

    rows = [row for row in best_of_each(plan) if row.memory is not None][: 2 * _SHOWN]
    figure = Figure(figsize=(9, 1.6 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    names = [row.choice.name for row in rows]
    left = [0.0] * len(rows)
    for part, label, colour in _PARTS:
        widths = [getattr(_memory(row), part) / GIB for row in rows]
        axes.barh(names, widths, left=left, color=colour, label=label)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, row in enumerate(rows):
        note = f" {row.tokens_per_s:,.0f} tokens/s" if not row.problem else " does not fit"
        axes.text(left[place], place, note, va="center", fontsize=7)
    machine, most = plan.machine, max(left, default=0.0)
    usable = machine.usable / GIB
    limit = max(1.25 * usable, 0.1)
    axes.axvline(usable, color="black", linestyle="--", linewidth=1)
    near = most >= usable / 5  # else the bars are all that there is to see
    axes.set_xlim(0, min(max(limit, 1.2 * most), 2 * limit) if near or not most else 1.35 * most)
    what = f"{machine.nodes} x {machine.per_node} {machine.device.name}"
    axes.set_title(f"GiB of each rank, {what}, of {usable:.1f} GiB{' (dashed)' if near else ''}")
    axes.margins(y=0.02)
    axes.invert_yaxis()
    figure.legend(ncols=len(_PARTS), fontsize=7, loc="outside lower center")
    figure.savefig(out, dpi=120)


def _memory(row: Planned) -> Memory:
    assert row.memory is not None
    return row.memory
