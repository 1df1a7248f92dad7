"""Measure how often the intervals of `trelm compare` hold the true difference, and how long they take.

python tools/bench/comparison.py [--times 1000] [--resamples 999] [--out docs/benchmarks/comparison.json] \
    [--docs docs/evaluation.md]

Two models without a true difference answer simulated questions: each question has an ease of its own that both share,
each model some of its own, each run (seed) a shift of all its answers and noise. The seeds' part of the variance of the
difference is what `seeds` gives: 0 where only the questions matter. A 95% interval should hold 0 in 95% of the
cases; "p at most 0.05" in the others is the same statement.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from trelm_ds.evaluation.comparison.bootstrap import (
    interval_of,
    mean_over_seeds,
    resampled_scores,
    student_tails,
)
from trelm_ds.evaluation.comparison.metrics import Accuracy, LooseScores, Metrics, Pearson, RelationMacro, RelationMicro
from trelm_ds.progress import track

START, END = "<!-- comparison-table -->", "<!-- /comparison-table -->"
NAMES = {
    "Accuracy": "accuracy",
    "LooseScores": "entity typing",
    "RelationMicro": "micro scores of 42 relations",
    "RelationMacro": "macro scores of them",
    "Pearson": "Pearson",
}
CASES = [  # examples, seeds, standard deviation of the seeds' shift
    *((300, 1, 0.0), (300, 5, 0.0), (300, 5, 0.15)),
    *((2000, 2, 0.05), (2000, 3, 0.05), (2000, 5, 0.05), (2000, 8, 0.05)),
    *((2000, 2, 0.15), (2000, 3, 0.15), (2000, 5, 0.15), (2000, 8, 0.15)),
]


def simulated(draw: np.random.Generator, n: int, seeds: int, shift: float) -> list[np.ndarray]:
    """Right and wrong answers of two models' runs, float64 [n, 1] each."""
    ease = draw.normal(0.8, 1, size=n)
    runs = []
    for _ in range(2):
        of_model = ease + draw.normal(0, 0.5, size=n)
        for _ in range(seeds):
            answers = of_model + draw.normal(0, shift) + draw.normal(0, 0.5, size=n) > 0
            runs.append(answers[:, None].astype(float))
    return runs


def coverage(n: int, seeds: int, shift: float, times: int, resamples: int) -> dict[str, Any]:
    """Count how often the interval holds 0, the true difference."""
    draw, held, measured, of_seeds = np.random.default_rng([n, seeds, round(1000 * shift)]), 0, [], []
    for _ in range(times):
        runs = simulated(draw, n, seeds, shift)
        scores = [of["accuracy"] for of in resampled_scores(Accuracy(), runs, None, resamples, draw)]
        chance, tails = (draw, student_tails(2 * seeds - 2, resamples, draw)) if seeds > 1 else (None, 1.0)
        difference = float(np.mean(runs[seeds:]) - np.mean(runs[:seeds]))
        resampled = mean_over_seeds(scores[seeds:], chance, tails) - mean_over_seeds(scores[:seeds], chance, tails)
        interval = interval_of(difference, resampled)
        held += interval.low <= 0 <= interval.high
        measured.append(difference)
        if seeds > 1:
            means = np.array([run.mean() for run in runs]).reshape(2, seeds)
            of_seeds.append(means.var(axis=1, ddof=1).sum() / seeds)
    share = min(1.0, float(np.mean(of_seeds) / np.var(measured))) if of_seeds and shift else 0.0
    return {"examples": n, "seeds": seeds, "shift": shift, "seeds_share": round(share, 2), "coverage": held / times}


def timed(metrics: Metrics, targets: Any, seeds: int, resamples: int) -> dict[str, Any]:
    """Time one comparison of two models that are right about three quarters of the examples."""
    draw = np.random.default_rng(0)
    gold = targets(draw)

    def run() -> list[Any]:
        others = draw.permutation(len(gold))
        return [true if draw.random() < 0.7 else gold[other] for true, other in zip(gold, others, strict=True)]

    signatures = [metrics.signature(gold, run()) for _ in range(2 * seeds)]
    start = time.process_time()
    resampled_scores(metrics, signatures, None, resamples, draw)
    seconds = time.process_time() - start
    return {"metrics": type(metrics).__name__, "examples": len(gold), "seeds": seeds, "seconds": round(seconds, 1)}


def write_docs(report: dict[str, Any], path: Path) -> None:
    """Replace the table in the docs, between its markers."""
    lines = [
        "| examples | seeds | due to seeds | interval holds the true difference |",
        "|---:|---:|---:|---:|",
        *(
            f"| {one['examples']} | {one['seeds']} | {one['seeds_share']:.0%} | {one['coverage']:.1%} |"
            for one in report["coverage"]
        ),
    ]
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    seconds = ", ".join(f"{NAMES[one['metrics']]} {one['seconds']} s" for one in report["seconds"])
    about = [
        f"{report['times']} simulated comparisons each, {report['resamples']} resamples.",
        "",
        f"Processor time of one comparison of 10,000 examples, 5 seeds a model, 5000 resamples: {seconds}.",
        f"{report['device']}, one thread; {versions}; {report['date']}.",
    ]
    head, _, rest = path.read_text().partition(START)
    _, _, tail = rest.partition(END)
    path.write_text("\n".join([head + START, *lines, "", *about, END + tail]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--times", type=int, default=1000, help="simulated comparisons of each case")
    parser.add_argument("--resamples", type=int, default=999, help="of each of them")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--docs", type=Path, help="page whose table to update (docs/evaluation.md)")
    options = parser.parse_args()
    covered = [coverage(*case, options.times, options.resamples) for case in track(CASES, "coverage", len(CASES))]
    print(f"{'examples':>8} {'seeds':>6} {'of seeds':>9} {'coverage':>9}")
    for one in covered:
        print(f"{one['examples']:>8} {one['seeds']:>6} {one['seeds_share']:>9.0%} {one['coverage']:>9.1%}")
    n, labels = 10_000, [f"relation {number}" for number in range(42)]
    types = [frozenset(["a"]), frozenset(["a", "b"]), frozenset(["c"]), frozenset()]
    kinds: list[tuple[Metrics, Any]] = [
        (Accuracy(), lambda draw: list(draw.choice(labels[:3], n))),
        (LooseScores(), lambda draw: [types[at] for at in draw.integers(4, size=n)]),
        (RelationMicro(labels[0]), lambda draw: list(draw.choice(labels, n))),
        (RelationMacro(labels[0]), lambda draw: list(draw.choice(labels, n))),
        (Pearson(), lambda draw: list(draw.random(n))),
    ]
    times = [timed(metrics, targets, 5, 5000) for metrics, targets in kinds]
    for one in times:
        print(
            f"{one['metrics']:<14} {one['examples']} examples, {one['seeds']} seeds, 5000 resamples: {one['seconds']} s"
        )
    about = {
        "device": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "versions": {name: version(name) for name in ("numpy", "scipy")},
        "date": datetime.date.today().isoformat(),
        "times": options.times,
        "resamples": options.resamples,
    }
    report = about | {"coverage": covered, "seconds": times}
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    if options.docs:
        write_docs(report, options.docs)


if __name__ == "__main__":
    main()
