"""Reports of LAMA results: a table, a plot, a JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trelm_ds.errors import UserError
from trelm_ds.files import write_atomically


def format_table(result: dict[str, Any]) -> str:
    """Format P@1 and the majority baseline in percent: per relation, per tier if the data has tiers, and the mean."""
    rows = [(name, score["label"], score) for name, score in result["relations"].items()]
    rows += [("tier", name, score) for name, score in result["tiers"].items()]
    rows.append(("mean", f"over {result['n_relations']} relations", result))
    width = max(len(label) for _, label, _ in rows)
    header = f"{'':<6} {'relation':<{width}} {'P@1':>6} {'majority':>9} {'facts':>7}"
    lines = [header, "-" * len(header)]
    previous = ""
    for name, label, score in rows:
        if name in ("tier", "mean") and name != previous:
            lines.append("-" * len(header))
        numbers = f"{_percent(score['p_at_1']):>6} {_percent(score['majority_baseline']):>9} {score['n_facts']:>7}"
        lines.append(f"{name:<6} {label:<{width}} {numbers}")
        previous = name
    skipped = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in result["skipped"].items())
    lines.append(f"candidates: {_candidates(result['candidates'])}; facts skipped: {skipped or 'none'}")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _candidates(description: dict[str, Any]) -> str:
    path = description["path"]
    return f"{description['n_tokens']} tokens of {Path(path).name if path else 'the ' + description['source']}"


def plot(result: dict[str, Any], path: str | Path) -> None:
    """Plot P@1 and majority baseline as bars into a PNG: per relation, and per tier in a second panel.

    Raises:
        UserError: `path` cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [{f"{score['label']} ({name})": score for name, score in result["relations"].items() if score["n_facts"]}]
    if result["tiers"]:
        panels.append(result["tiers"])
    sizes = [len(panel) + 1 for panel in panels]
    figure = Figure(figsize=(9, 1.5 + 0.42 * sum(sizes)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=sizes)
    for axes, panel in zip(grid[:, 0], panels, strict=True):
        places = range(len(panel))
        for offset, key, label, color in (
            (-0.2, "p_at_1", "P@1", "#1f5fa8"),
            (0.2, "majority_baseline", "majority object", "#c4c4c4"),
        ):
            shares = [100 * score[key] for score in panel.values()]
            bars = axes.barh([place + offset for place in places], shares, height=0.38, label=label, color=color)
            axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
        axes.set_yticks(list(places), [f"{name}  n={score['n_facts']}" for name, score in panel.items()])
        axes.set_ylim(len(panel) - 0.4, -0.6)  # the first on top, no empty margin
        axes.set_xlim(0, 105)
        axes.spines[["top", "right"]].set_visible(False)
    mean, majority = _percent(result["p_at_1"]), _percent(result["majority_baseline"])
    figure.suptitle(f"LAMA P@1 of {Path(result['model']).name}: mean {mean} %, majority object {majority} %")
    grid[0, 0].legend(loc="lower right", frameon=False)
    grid[-1, 0].set_xlabel("percent of facts")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=130)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}); give another file") from None


def write_result(result: dict[str, Any], path: str | Path) -> None:
    """Write the result as JSON, atomically.

    Raises:
        UserError: `path` cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}); give another file") from None
