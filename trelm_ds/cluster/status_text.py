"""Rendering of run states: lines for one run, a table for several, JSON for machines."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import datetime

from trelm_ds.cluster.status import Status, to_plain


def to_lines(status: Status) -> str:
    """Render one run, one line per known value."""
    state = (
        status.state + (f", job {status.job}" if status.job else "") + (f" on {status.nodes}" if status.nodes else "")
    )
    lines = [("run", str(status.run)), ("state", state)]
    lines += [("reason", status.reason)] if status.reason else []
    lines += [("step", _step(status))]
    if status.loss is not None:
        lines += [("loss", _number(status.loss, ".4g")), ("speed", f"{_number(status.tokens_per_s, ',.0f')} tokens/s")]
    if status.logged_s is not None and status.state == "running":
        lines += [("logged", f"{duration(status.logged_s)} ago")]
    if status.remaining_s is not None:
        lines += [("ETA", _eta(status))]
    lines += [("restarts", str(status.restarts))] if status.restarts is not None else []
    lines += [("skipped", f"{status.skipped_steps:,} steps")] if status.skipped_steps is not None else []
    lines += [("checkpoint", _checkpoint(status))]
    if status.event is not None:
        ago = f", {duration(status.event_s)} ago" if status.event_s is not None else ""
        lines += [("last event", status.event + ago)]
    lines += [("log", status.log)] if status.log else []
    if status.unsent:
        number = f"{status.unsent:,} {'entry waits' if status.unsent == 1 else 'entries wait'} to be sent"
        lines += [("MLflow", number if status.live else f"{number}: trelm sync {status.run}")]
    return "".join(f"{name:<12}{text}\n" for name, text in lines)


def to_table(statuses: Sequence[Status]) -> str:
    """Render several runs as a table, one line per run."""
    header = ("run", "state", "job", "step", "%", "loss", "tokens/s", "left", "restarts", "checkpoint", "age")
    rows = [header, *(_row(status) for status in statuses)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = []
    for row in rows:
        left = [text.ljust(width) for text, width in zip(row[:2], widths[:2], strict=True)]
        right = [text.rjust(width) for text, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(left + right))
    return "\n".join(lines)


def to_json(statuses: Sequence[Status]) -> str:
    """Render runs as a JSON list with one object per run."""
    return json.dumps([to_plain(status) for status in statuses], indent=1)


def duration(seconds: float | None) -> str:
    """Format a duration with at most two units: 3 d 4 h, 5 h 6 min, 7 min, 8 s."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{rest} s"


def _row(status: Status) -> tuple[str, ...]:
    percent = f"{100 * status.step / status.max_steps:.1f}" if status.max_steps else "-"
    return (
        str(status.run),
        status.state,
        status.job or "-",
        f"{status.step:,}",
        percent,
        _number(status.loss, ".4g"),
        _number(status.tokens_per_s, ",.0f"),
        duration(status.remaining_s),
        "-" if status.restarts is None else str(status.restarts),
        "-" if status.checkpoint_step is None else f"{status.checkpoint_step:,}",
        duration(status.checkpoint_s),
    )


def _step(status: Status) -> str:
    if not status.max_steps:
        return f"{status.step:,}"
    return f"{status.step:,} of {status.max_steps:,} ({100 * status.step / status.max_steps:.1f} %)"


def _eta(status: Status) -> str:
    if status.ends_at is None:
        return f"{duration(status.remaining_s)} of training are left"
    return f"{duration(status.remaining_s)}, {datetime.fromtimestamp(status.ends_at):%Y-%m-%d %H:%M}"


def _checkpoint(status: Status) -> str:
    if status.checkpoint_step is None:
        return "none yet"
    ago = "" if status.checkpoint_s is None else f", {duration(status.checkpoint_s)} ago"
    return f"step {status.checkpoint_step:,}{ago}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)
