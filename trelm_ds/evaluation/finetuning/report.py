"""Fine-tuning results for people: a table, and how dev went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trelm_ds.errors import UserError


def format_result(result: dict[str, Any]) -> str:
    """Format the scores of the reported split in percent, mean and standard deviation, beside the baseline's."""
    tasks = _tasks(result)
    header = f"{'task':<9} {'split':<15} {'metric':<16} {'score':>14} {'most frequent':>14}"
    lines = [header, "-" * len(header)]
    for name, of in tasks.items():
        for split, metrics in of["splits"].items():
            if split != of["reported"] and name != "mnli":
                continue
            lines += [
                f"{name:<9} {split:<15} {metric:<16} {percent(value):>14} {100 * of['baseline'][split][metric]:>14.1f}"
                for metric, value in metrics.items()
            ]
    if "average" in result:
        lines += [
            "-" * len(header),
            f"{'average':<9} {_of_nine(result['average']):<32} {percent(result['average']):>14}",
        ]
    for name, of in tasks.items():
        lines.append(f"{name}: {_how(of, len(result['seeds']))}")
    return "\n".join(lines)


def _tasks(result: dict[str, Any]) -> dict[str, Any]:
    return result.get("tasks") or {result["task"]: result}


def percent(value: dict[str, Any]) -> str:
    """Format a spread in percent."""
    mean = f"{100 * value['mean']:.1f}"
    return mean if value["std"] is None else f"{mean} ± {100 * value['std']:.1f}"


def _of_nine(average: dict[str, Any]) -> str:
    return "of nine numbers" if average["numbers"] == 9 else f"of {average['numbers']} of the nine numbers"


def _how(of: dict[str, Any], seeds: int) -> str:
    epochs = " ".join(str(run["best_epoch"]) for run in of["runs"])
    parts = [f"lr {of['lr']:g}, {seeds} seed{'s' * (seeds > 1)}, best epoch {epochs}"]
    if cut := {split: count for split, count in of["shortened"].items() if count}:
        parts.append("cut: " + ", ".join(f"{count} of {split}" for split, count in cut.items()))
    parts += [f"left out: {count} {reason}" for reason, count in of["notes"].items()]
    if diverged := sum(run["diverged"] for run in of["runs"]):
        parts.append(f"{diverged} of the runs ended early with a loss that was not finite")
    return "; ".join(parts)


def plot_result(result: dict[str, Any], path: Path) -> None:
    """Plot dev's score after every epoch, a line a seed, into a PNG with a panel for each task.

    Raises:
        UserError: `path` cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    tasks = _tasks(result)
    columns = min(4, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(max(6, 4 * columns), 3.4 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (name, of) in zip(grid, tasks.items(), strict=False):
        for run in of["runs"]:
            epochs = [epoch["epoch"] for epoch in run["epochs"]]
            scores = [100 * epoch["dev"][of["metric"]] for epoch in run["epochs"]]
            (line,) = axes.plot(epochs, scores, marker=".", linewidth=1.2, label=f"seed {run['seed']}")
            if run["best_epoch"]:
                axes.plot(run["best_epoch"], scores[run["best_epoch"] - 1], "o", color=line.get_color())
        axes.axhline(100 * of["baseline"]["dev"][of["metric"]], color="#999999", linestyle=":", label="most frequent")
        axes.set_title(f"{name}: {of['reported']} {percent(of['scores'][of['metric']])}", fontsize=10)
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"dev {of['metric'].replace('_', ' ')} (%)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    for axes in list(grid)[len(tasks) :]:
        axes.set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{result['task']}, fine-tuned from {Path(result['model']).name}", fontsize=11, parse_math=False)
    try:
        figure.savefig(path, format="png", dpi=130)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}); give another file") from None
