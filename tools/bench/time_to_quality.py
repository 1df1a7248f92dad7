"""Measure how long each recipe takes to the score that DKPLM ends with (the paper: TRELM takes 0.375 of its time).

python tools/bench/time_to_quality.py --work WORK [--world trex|sample] [--seeds 0] [--steps N] [--points 10]

Every recipe trains for equal steps, with checkpoints at equal distances, which are exported and probed. The time of a
checkpoint is its step times the recipe's seconds per step, for which all recipes take turns in one process, step by
step, on a quiet machine: so other load affects all of them alike. It may be stopped at any time and goes on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from objectives import WARM_UP, take_turns
from recipes import ROOT, World, run_settings, sample_world, slug_of, trelm, trex

from trelm_ds.run_folder import committed, step_of
from trelm_ds.settings import add_settings, parse

RECIPES = ("mlm", "queries_only", "trelm", "trelm - routing", "dkplm", "dkplm, TRELM's dose")
GOAL = "dkplm"  # whose final score the others have to reach
CLAIM = 0.375


def seconds_per_step(world: World, steps: int, rounds: int) -> dict[str, float]:
    """Measure the median step of every recipe, all in this process and in turns."""
    configs = {}
    for name in RECIPES:
        parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, print_config=None)
        add_settings(parser)
        configs[name], _ = parse(parser, run_settings(world, name, 0, steps, every=steps))
    timed = take_turns(configs, world.dataset, rounds)
    return {name: statistics.median(one.steps[WARM_UP:]) for name, one in timed.items()}


def scores(world: World, work: Path, name: str, seed: int, steps: int, points: int) -> dict[int, float]:
    """Train a run and probe its checkpoints: P@1 in percent by step, at step 0 that of the model it started from."""
    folder = work / f"quality-{steps}" / slug_of(name, seed)
    folder.mkdir(parents=True, exist_ok=True)
    log, found = folder / "log.txt", {}
    place = ["--data", str(world.dataset), "--out", str(folder / "run")]
    trelm(log, "pretrain", *place, *run_settings(world, name, seed, steps, every=steps // points))
    for checkpoint in committed(folder / "run"):
        result, model = folder / f"{checkpoint.name}.json", folder / checkpoint.name
        if not result.is_file():
            trelm(log, "export", str(checkpoint), str(model))
            where = ["--model", str(model), "--data", str(world.lama), "--out", str(result)]
            trelm(log, "evaluate", "lama", *where, *world.probing)
        found[step_of(checkpoint)] = p_at_1(result)
    start = work / "start" / "model"
    if world.overrides:  # continued from it
        result = work / f"quality-{steps}" / "start.json"
        if not result.is_file():
            where = ["--model", str(start), "--data", str(world.lama), "--out", str(result)]
            trelm(log, "evaluate", "lama", *where, *world.probing)
        found[0] = p_at_1(result)
    return dict(sorted(found.items()))


def p_at_1(result: Path) -> float:
    return 100 * float(json.loads(result.read_text())["parts"]["trex"]["p_at_1"])


def time_to(goal: float, curve: dict[int, float], seconds: float) -> float | None:
    """Find when a curve, score by step, first reaches the goal, between its points on a line; None if it never does."""
    points = [(0, curve.get(0, 0.0)), *((step, score) for step, score in curve.items() if step)]
    if points[0][1] >= goal:
        return 0.0
    for (step, score), (next_step, next_score) in pairwise(points):
        if next_score >= goal:
            return seconds * (step + (next_step - step) * (goal - score) / (next_score - score))
    return None


def report(curves: dict[str, list[dict[int, float]]], seconds: dict[str, float], steps: int) -> dict[str, Any]:
    """Set every recipe's time to DKPLM's final score beside DKPLM's own, seed by seed."""
    recipes = {}
    for name, of_seeds in curves.items():
        ratios: list[float | None] = []
        for number, curve in enumerate(of_seeds):
            rival = curves[GOAL][number]
            reached = time_to(rival[max(rival)], curve, seconds[name])
            ratios.append(None if reached is None else round(reached / (seconds[GOAL] * max(rival)), 3))
        recipes[name] = {
            "seconds_per_step": round(seconds[name], 4),
            "final": [round(curve[max(curve)], 2) for curve in of_seeds],
            "time_to_dkplm": ratios,
            "curves": of_seeds,
        }
    return {
        "device": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "versions": {name: version(name) for name in ("torch", "deepspeed")},
        "date": datetime.date.today().isoformat(),
        "steps": steps,
        "claim": CLAIM,
        "recipes": recipes,
    }


def table(result: dict[str, Any]) -> str:
    rows = ["| recipe | s per step | final P@1 | time to dkplm's final score / dkplm's |", "|---" * 4 + "|"]
    for name, of in result["recipes"].items():
        final = ", ".join(f"{score:.1f}" for score in of["final"])
        ratios = ", ".join("not reached" if ratio is None else f"{ratio:.2f}" for ratio in of["time_to_dkplm"])
        rows.append(f"| {name} | {of['seconds_per_step']:.3f} | {final} | {ratios} |")
    return "\n".join(rows)


def plot(result: dict[str, Any], path: Path) -> None:
    """Plot the first seed's score against seconds of training."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, of in result["recipes"].items():
        curve = of["curves"][0]
        axes.plot([step * of["seconds_per_step"] for step in curve], list(curve.values()), marker=".", label=name)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("P@1, percent")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for dataset and runs; recipes.py's will do")
    parser.add_argument("--world", choices=("sample", "trex"), default="trex")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, help="steps of every run (default: sample 2200, trex 600)")
    parser.add_argument("--start-steps", type=int, default=1500, help="trex: steps of the model that all continue")
    parser.add_argument("--points", type=int, default=10, help="checkpoints to probe")
    parser.add_argument("--rounds", type=int, default=30, help="steps of each recipe to time")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    work, steps = options.work.resolve(), options.steps or (2200 if options.world == "sample" else 600)
    world = sample_world(work, steps) if options.world == "sample" else trex(work, options.start_steps)
    curves = {
        name: [scores(world, work, name, seed, steps, options.points) for seed in options.seeds] for name in RECIPES
    }
    result = report(curves, seconds_per_step(world, steps, options.rounds), steps)
    out = ROOT / "docs" / "benchmarks" / f"time_to_quality_{options.world}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    plot(result, out.with_suffix(".png"))
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
