"""Tables and plots of `recipes.py`: means and paired differences with 95% intervals, MLM loss by step and by time."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from paired import difference, interval

Runs = Mapping[int, dict[str, Any]]  # records by seed
REFERENCES = ("trelm", "queries_only")  # what all others are compared with


def report(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Collect means, differences of pairs, doses and curves of runs of one world.

    Args:
        records: of `recipes.finish`.
    """
    for record in records:  # as further columns
        record["p_at_1"] |= record.get("few_shot", {})
    by_recipe: dict[str, dict[int, dict[str, Any]]] = {}
    for record in records:
        by_recipe.setdefault(record["name"], {})[record["seed"]] = record
    kinds = list(records[0]["p_at_1"])
    return {
        "device": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "versions": {name: version(name) for name in ("torch", "deepspeed", "transformers")},
        "date": datetime.date.today().isoformat(),
        "steps": records[0]["steps"],
        "majority": records[0]["majority"],
        "facts": records[0]["facts"],
        "recipes": {name: of_recipe(runs, kinds) for name, runs in by_recipe.items()},
        "differences": {
            reference: {
                name: paired(runs, by_recipe[reference], kinds)
                for name, runs in by_recipe.items()
                if name != reference and runs.keys() & by_recipe[reference].keys()
            }
            for reference in REFERENCES
            if reference in by_recipe
        },
    }


def of_recipe(runs: Runs, kinds: list[str]) -> dict[str, Any]:
    """Summarise the runs of a recipe, by seed."""
    means = {kind: interval([run["p_at_1"][kind] for run in runs.values()]) for kind in kinds}
    first = runs[min(runs)]
    # The fastest seed's speed: others shared the machine with more load.
    seconds = min(run["seconds_per_step"] for run in runs.values())
    return {
        "seeds": sorted(runs),
        "cells": {kind: str(mean) for kind, mean in means.items()},
        "mean": {kind: round(mean.mean, 2) for kind, mean in means.items()},
        "half": {kind: round(mean.half, 2) if mean.n > 1 else None for kind, mean in means.items()},
        "doses": first["doses"],
        "gate": gate([run["gate"] for run in runs.values() if run["gate"]]),
        "seconds_per_step": seconds,
        "curve": {**first["curve"], "seconds": [round(step * seconds, 1) for step in first["curve"]["step"]]},
    }


def gate(runs: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Summarise what runs read of what is injected: by step, how far h_e is on the way from the mean vector's loss to
    the own words', in percent, and the number of runs that pass the gate (`injection.py`)."""
    return {
        step: {
            "way": str(interval([100 * (run[step]["way"] or 0.0) for run in runs])),
            "passes": sum(run[step]["passes"] for run in runs),
            "runs": len(runs),
        }
        for step in (runs[0] if runs else {})
    }


def gate_table(result: dict[str, Any]) -> str:
    """Markdown: the gate of every recipe that injects; empty where none does."""
    gates = {name: of["gate"] for name, of in result["recipes"].items() if of["gate"]}
    if not gates:
        return ""
    steps = list(next(iter(gates.values())))
    header = "".join(f" h_e's way at step {step}, percent | passes |" for step in steps)
    rows = [
        f"| {name} |" + "".join(f" {of[step]['way']} | {of[step]['passes']} of {of[step]['runs']} |" for step in steps)
        for name, of in gates.items()
    ]
    return "\n".join([f"| recipe |{header}", f"{'|---' * (2 * len(steps) + 1)}|", *rows])


def paired(runs: Runs, others: Runs, kinds: list[str]) -> dict[str, Any]:
    """Compare two recipes by the seeds that both have."""
    seeds = sorted(runs.keys() & others.keys())
    found = {
        kind: difference(*([of[seed]["p_at_1"][kind] for seed in seeds] for of in (runs, others))) for kind in kinds
    }
    return {
        "cells": {kind: str(one) for kind, one in found.items()},
        **{kind: one.to_json() for kind, one in found.items()},
    }


def tables(result: dict[str, Any]) -> str:
    """Markdown: P@1 in percent by kind of fact, then what each recipe has more than TRELM and than the control."""
    kinds = list(next(iter(result["recipes"].values()))["mean"])
    header = f"| recipe | {' | '.join(kinds)} | seeds |\n{'|---' * (len(kinds) + 2)}|"
    rows = [
        f"| {name} | {' | '.join(of['cells'][kind] for kind in kinds)} | {len(of['seeds'])} |"
        for name, of in result["recipes"].items()
    ]
    rows.append(f"| most frequent answer | {' | '.join(_known(result['majority'], kind, '.1f') for kind in kinds)} | |")
    rows.append(f"| *facts* | {' | '.join(_known(result['facts'], kind, '') for kind in kinds)} | |")
    parts = ["\n".join([header, *rows])]
    for reference, others in result["differences"].items():
        header = f"| less {reference}, seed by seed | {' | '.join(kinds)} |\n{'|---' * (len(kinds) + 1)}|"
        rows = [f"| {name} | {' | '.join(of['cells'][kind] for kind in kinds)} |" for name, of in others.items()]
        if rows:
            parts.append("\n".join([header, *rows]))
    return "\n\n".join([*parts, *filter(None, [gate_table(result)]), origin(result)])


def _known(values: dict[str, float], kind: str, form: str) -> str:
    """Write a number; nothing for fine-tuning, which has no majority baseline here."""
    return format(values[kind], form) if kind in values else ""


def origin(result: dict[str, Any]) -> str:
    """Say where the figures come from."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    return f"Mean ± 95% interval; {result['steps']} steps; {result['device']}; {versions}; {result['date']}."


def plot(result: dict[str, Any], path: Path) -> None:
    """Plot P@1 by kind of fact with its interval, and MLM loss by step and by time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    recipes, kinds = result["recipes"], list(result["majority"])
    figure = Figure(figsize=(11, 2.2 + 0.9 * len(kinds) + 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subfigures(2, 1, height_ratios=[1.2 + 0.9 * len(kinds), 3.5])
    axes = upper.subplots()
    height = 0.8 / len(recipes)
    for number, (name, recipe) in enumerate(recipes.items()):
        means, halves = ([recipe[key][kind] or 0.0 for kind in kinds] for key in ("mean", "half"))
        places = [place + (number + 0.5) * height - 0.4 for place in range(len(kinds))]
        axes.barh(places, means, height * 0.9, xerr=halves, label=name, error_kw={"elinewidth": 0.8})
    for place, kind in enumerate(kinds):
        axes.plot([result["majority"][kind]] * 2, [place - 0.4, place + 0.4], color="black", linestyle=":")
    axes.set_yticks(range(len(kinds)), kinds)
    axes.invert_yaxis()
    axes.set_xlabel("P@1, percent, and 95% interval; dotted: most frequent answer")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    for panel, key, label in zip(lower.subplots(1, 2, sharey=True), ("step", "seconds"), ("step", "s"), strict=True):
        for name, recipe in recipes.items():
            panel.plot(recipe["curve"][key], recipe["curve"]["mlm_loss"], label=name, linewidth=1)
        panel.set_xlabel(label)
        panel.set_ylabel("MLM loss")
        panel.set_yscale("log")
    figure.savefig(path, dpi=130)
