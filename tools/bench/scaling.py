"""Simulate how training scales from 8 to 1,024 GPUs: base, large and xl, dense and TRELM, on A100s and H100s.

    python tools/bench/scaling.py [--sizes base large xl] [--gpus a100-80g h100] [--out FILE]

Nothing is measured: `trelm plan`'s roofline, with its links and shares (docs/planning.md), 8 GPUs in a node. Strong
scaling keeps the size's global batch, weak scaling keeps the sequences of a GPU as 8 GPUs have them. Of every number
of GPUs the fastest of ZeRO 1 to 3, recomputed or not, tensor parallelism 1 or 2, that fits.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from compact import SIZES, with_table
from jsonargparse import ArgumentParser
from objectives import variants

from trelm_ds.config import Config
from trelm_ds.planning import Choice, Machine, Planned, Planner, device_of
from trelm_ds.settings import add_settings, parse

ROOT = Path(__file__).resolve().parents[2]
PAGE, MARK = ROOT / "docs" / "planning.md", "scaling-table"
WORLDS, PER_NODE = (8, 16, 32, 64, 128, 256, 512, 1024), 8
MICRO_BATCH = 16384


def modes(config: Config) -> dict[str, Config]:
    """Build what is compared: TRELM as it ships, with a compact path, and plain masked language modelling."""
    compact = replace(config, routing=replace(config.routing, compact=True))
    return {"mlm": variants(config)["mlm"], "trelm": config, "compact": compact}


def fastest(planner: Planner) -> Planned | None:
    """Plan the choices, and return the fastest that fits."""
    rows = [
        planner.planned(Choice(stage, False, tensor, MICRO_BATCH, checkpointing))
        for stage in (1, 2, 3)
        for checkpointing in (False, True)
        for tensor in (1, 2)
    ]
    fitting = [row for row in rows if not row.problem]
    return max(fitting, key=lambda row: row.tokens_per_s, default=None)


def curve(config: Config, gpu: str, weak: bool) -> list[dict[str, Any]]:
    """Simulate one curve, point by point."""
    batch = config.trainer.global_batch_size
    config = replace(config, trainer=replace(config.trainer, micro_batch_tokens=MICRO_BATCH))
    device, found = device_of(gpu), []
    planner = Planner(config, Machine(device, 1, PER_NODE), None)
    for world in WORLDS:
        size = batch * world // PER_NODE if weak else batch
        there = planner.on(Machine(device, world // PER_NODE, PER_NODE)).with_batch(size)
        if (row := fastest(there)) is None or row.time is None:
            continue
        found.append(
            {
                "gpus": world, "global_batch_size": size, "choice": row.choice.name,
                "tokens_per_s": round(row.tokens_per_s), "mfu": round(row.mfu, 3),
                "exposed_exchange": round((row.time.data + row.time.tensor) / row.time.total, 3),
            }
        )  # fmt: skip
    return found


def table(curves: dict[str, list[dict[str, Any]]]) -> str:
    """Format efficiencies, tokens/s per GPU over those of 8 GPUs, as Markdown."""
    lines = [f"| | 8 GPUs, tokens/s | {' | '.join(map(str, WORLDS[1:]))} |", "|---" * (len(WORLDS) + 1) + "|"]
    for name, points in curves.items():
        if name.endswith("weak"):
            continue
        first = points[0]["tokens_per_s"] / points[0]["gpus"]
        shares = {point["gpus"]: point["tokens_per_s"] / point["gpus"] / first for point in points}
        cells = [f"{shares[world]:.0%}" if world in shares else "" for world in WORLDS[1:]]
        lines.append(f"| {name} | {points[0]['tokens_per_s']:,} | {' | '.join(cells)} |")
    least = min(
        point["tokens_per_s"] * points[0]["gpus"] / point["gpus"] / points[0]["tokens_per_s"]
        for name, points in curves.items()
        if name.endswith("weak")
        for point in points
    )
    return "\n".join([*lines, "", f"Where the batch grows with the GPUs, all stay above {math.floor(99.9 * least)}%."])


def plot(curves: dict[str, list[dict[str, Any]]], out: Path) -> None:
    """Draw tokens/s over GPUs, a panel for each size and GPU."""
    from matplotlib.figure import Figure

    panels = sorted({name.rsplit(", ", 2)[0] for name in curves}, key=lambda name: (name.split(", ")[1], name))
    rows = len({name.split(", ")[1] for name in panels})
    figure = Figure(figsize=(4.2 * len(panels) / rows, 3.6 * rows), layout="constrained")
    grid = figure.subplots(rows, len(panels) // rows, squeeze=False).flat
    for axes, panel in zip(grid, panels, strict=True):
        for name, points in curves.items():
            if name.startswith(f"{panel}, "):
                gpus = [point["gpus"] for point in points]
                style = "--" if name.endswith("weak") else "-"
                label = name.removeprefix(f"{panel}, ")
                axes.plot(gpus, [point["tokens_per_s"] for point in points], style, marker="o", ms=3, label=label)
        axes.set(xscale="log", yscale="log", title=panel, xlabel="GPUs", ylabel="tokens/s, simulated")
        axes.legend(fontsize=7)
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["base", "large", "xl"], help="files of recipes/sizes")
    parser.add_argument("--gpus", nargs="+", default=["a100-80g", "h100"])
    parser.add_argument("--out", type=Path, help="default: docs/benchmarks/scaling.json and docs/planning.md")
    options = parser.parse_args()
    curves = {}
    for size in options.sizes:
        settings = ArgumentParser(exit_on_error=False, allow_abbrev=False, print_config=None)
        add_settings(settings)
        config = parse(settings, ["--config", str(SIZES / f"{size}.yaml")])[0]
        for gpu in options.gpus:
            for mode, one in modes(config).items():
                for weak in (False, True):
                    name = f"{size}, {gpu}, {mode}, {'weak' if weak else 'strong'}"
                    if points := curve(one, gpu, weak):
                        curves[name] = points
                        print(name, points[-1]["tokens_per_s"], flush=True)
    result = {"device": "none: simulated", "date": datetime.date.today().isoformat(), "curves": curves}
    out = options.out or ROOT / "docs" / "benchmarks" / "scaling.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    plot(curves, out.with_suffix(".png"))
    if options.out is None:
        PAGE.write_text(with_table(PAGE.read_text(), table(curves), MARK, PAGE))


if __name__ == "__main__":
    main()
