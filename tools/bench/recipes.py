"""Compare recipes: pre-train each with several seeds for equal steps, probe it for facts, and write JSON and plots.

python tools/bench/recipes.py --work WORK [--world sample|trex] [--seeds 0 1 2] [--jobs 2] [--only NAME ...]

Everything runs through the `trelm` command. It may be stopped at any time: finished runs are kept, others resume.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "trelm_ds" / "recipes"
SHARED = ROOT.parent / "shared" / "data"
SAMPLE_SHAPE = [
    "--tokenizer",
    "train",
    "--vocab-size",
    "6000",
    "--unit",
    "sentence",
    "--max-length",
    "64",
    "--min-words",
    "4",
]
QUIET = ["--tracking.enabled", "false", "--loader.workers", "0", "--trainer.log_every", "20"]

# name -> recipe file, overrides. Ablations also run without routing, so compare them with TRELM without routing.
_DENSE = ["--routing.enabled", "false"]
SAMPLE_PLAN: dict[str, tuple[str, list[str]]] = {
    "mlm": ("mlm", []),
    "dkplm": ("dkplm", []),
    "kepler": ("kepler", []),
    "trelm": ("trelm", []),
    "trelm, without routing": ("trelm_without_routing", []),
    "trelm, without injection": ("trelm_without_injection", _DENSE),
    "trelm, without memory": ("trelm_without_memory", _DENSE),
    "trelm, without assessing": ("trelm_without_assessing", []),
    "trelm, product": ("trelm", ["--cka.decoder", "product", *_DENSE]),
    "trelm, injection 1.0": ("trelm", ["--injection.probability", "1.0", *_DENSE]),
    "trelm, product, injection 1.0": (
        "trelm",
        ["--cka.decoder", "product", "--injection.probability", "1.0", *_DENSE],
    ),
}
TREX_PLAN = {name: SAMPLE_PLAN[name] for name in ("mlm", "dkplm", "trelm", "trelm, without routing")} | {
    "trelm, routing 25%": ("trelm", ["--routing.density", "0.25"]),
    "trelm, routing 100%": ("trelm", ["--routing.density", "1.0"]),
    "trelm, ffn only": ("trelm", ["--routing.trainable", "ffn_only"]),
}


@dataclass
class World:
    """A dataset with its probes, and the recipes to run on it."""

    dataset: Path
    lama: Path
    plan: dict[str, tuple[str, list[str]]]
    overrides: list[str] = field(default_factory=list)
    probing: list[str] = field(default_factory=list)  # further arguments of `trelm evaluate lama`


def run(log: Path, *command: str) -> None:
    """Run a command with its output in `log`; show the end of the log if it fails."""
    with log.open("a") as stream:
        done = subprocess.run(command, stdout=stream, stderr=stream, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nfailed; {log} ends with\n{log.read_text()[-2000:]}")


def trelm(log: Path, *arguments: str) -> None:
    run(log, sys.executable, "-m", "trelm_ds", *arguments)


def sample_world(work: Path) -> World:
    """Prepare the built-in world as the quickstart does."""
    log, world, dataset = work / "prepare.log", work / "world", work / "dataset"
    if not (world / "lama").is_dir():
        run(log, sys.executable, str(ROOT / "tools" / "sample_world" / "generate.py"), "--out", str(world))
    text = ["--source", str(world / "wiki"), "--wikidata5m", str(world / "wikidata5m"), "--out", str(dataset)]
    trelm(log, "prepare", *text, *SAMPLE_SHAPE)
    return World(dataset, world / "lama", SAMPLE_PLAN)


def trex(work: Path, start_steps: int) -> World:
    """Prepare LAMA's T-REx evidence and graph, and the plain MLM model that all recipes continue."""
    log, dataset, start = work / "prepare.log", work / "dataset", work / "start"
    text = ["--source", str(SHARED / "corpus" / "trex_linked.jsonl.gz"), "--wikidata5m", str(SHARED / "wikidata5m")]
    shape = ["--tokenizer", "train", "--vocab-size", "8000", "--max-length", "64"]
    trelm(log, "prepare", *text, *shape, "--out", str(dataset))
    sizes = ["--config", str(RECIPES / "sizes" / "tiny.yaml")]
    if not (start / "model").is_dir():
        steps = ["--trainer.max_steps", str(start_steps), *QUIET]
        mlm = ["--config", str(RECIPES / "mlm.yaml"), "--data", str(dataset), "--out", str(start / "run")]
        trelm(log, "pretrain", *sizes, *mlm, *steps)
        trelm(log, "export", str(start / "run"), str(start / "model"))
    settings = ["--model.init_from", str(start / "model"), "--optimizer.lr", "1e-3"]
    return World(dataset, SHARED / "lama", TREX_PLAN, settings, ["--dataset", str(dataset)])


def check_settings(run_folder: Path, settings: list[str]) -> None:
    """Exit if the run exists with other settings; settings of the model are those of the start model."""
    made = run_folder / "config.yaml"
    if not made.is_file():
        return
    command = [sys.executable, "-m", "trelm_ds", "pretrain", *settings, "--print-config"]
    wanted = yaml.safe_load(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    for section, values in yaml.safe_load(made.read_text()).items():
        for name, value in values.items():
            now = wanted.get(section, {}).get(name, value)  # default: the setting no longer exists
            if section != "model" and now != value:
                raise SystemExit(
                    f"{run_folder}: made with {section}.{name} {value}, now {now}; remove it, or another --work"
                )


def finish(world: World, runs: Path, name: str, seed: int, steps: int) -> Path:
    """Train, export and probe one run, or do what is missing; return its folder."""
    recipe, overrides = world.plan[name]
    folder = runs / f"{name.replace(', ', '_').replace(' ', '_')}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    log, result = folder / "log.txt", folder / "lama.json"
    configs = ["--config", str(RECIPES / "sizes" / "tiny.yaml"), "--config", str(RECIPES / f"{recipe}.yaml")]
    seeds = ["--trainer.seed", str(seed), "--loader.seed", str(seed), "--trainer.max_steps", str(steps)]
    place = ["--data", str(world.dataset), "--out", str(folder / "run")]
    settings = [*configs, *place, *QUIET, *seeds, *world.overrides, *overrides]
    check_settings(folder / "run", settings)
    if result.is_file():
        return folder
    trelm(log, "pretrain", *settings)
    trelm(log, "export", str(folder / "run"), str(folder / "model"))
    where = ["--model", str(folder / "model"), "--data", str(world.lama), "--out", str(result)]
    trelm(log, "evaluate", "lama", *where, *world.probing)
    print(f"{name}, seed {seed}: done", flush=True)
    return folder


def percents(folder: Path, key: str) -> dict[str, float]:
    """Read P@1, or that of the "majority_baseline", of a run's probes in percent: by tier and over all.

    The tiers are the probes' own, or the long tail and the frequent subjects.
    """
    part = json.loads((folder / "lama.json").read_text())["parts"]["trex"]
    tiers = {**part["groups"].get("tier", part["groups"].get("subject", {})), "all": part}
    return {tier: 100 * (score[key] if key == "p_at_1" else score[key]["p_at_1"]) for tier, score in tiers.items()}


def log_points(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def curve(folders: list[Path]) -> dict[str, list[float]]:
    """Read the first seed's MLM loss at every log point, by step and by seconds of training.

    Seconds assume the fastest seed's median speed, because other seeds shared the machine with more load.
    """
    points = log_points(folders[0])
    batch = yaml.safe_load((folders[0] / "run" / "config.yaml").read_text())["trainer"]["global_batch_size"]
    speed = max(statistics.median(point["sequences_per_s"] for point in log_points(folder)) for folder in folders)
    steps = [point["step"] for point in points]
    seconds = [round(step * batch / speed, 1) for step in steps]
    return {"step": steps, "seconds": seconds, "mlm_loss": [round(point["mlm_loss"], 4) for point in points]}


def report(found: dict[str, list[Path]], steps: int, seeds: list[int]) -> dict[str, Any]:
    """Collect mean and spread over the seeds, every single figure, and the curves of the first seed."""
    recipes = {}
    for name, folders in found.items():
        each = [percents(folder, "p_at_1") for folder in folders]
        recipes[name] = {
            "mean": {tier: round(statistics.mean(one[tier] for one in each), 1) for tier in each[0]},
            "lowest": {tier: round(min(one[tier] for one in each), 1) for tier in each[0]},
            "highest": {tier: round(max(one[tier] for one in each), 1) for tier in each[0]},
            "seeds": [{tier: round(value, 1) for tier, value in one.items()} for one in each],
            "curve": curve(folders),
        }
    majority = percents(next(iter(found.values()))[0], "majority_baseline")
    return {
        "device": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "versions": {name: version(name) for name in ("torch", "deepspeed", "transformers")},
        "date": datetime.date.today().isoformat(),
        "steps": steps,
        "seeds": seeds,
        "majority": {tier: round(value, 1) for tier, value in majority.items()},
        "recipes": recipes,
    }


def table(result: dict[str, Any]) -> str:
    """Markdown: P@1 in percent, mean and range over the seeds, by tier."""
    tiers = list(result["majority"])
    rows = ["| recipe | " + " | ".join(tiers) + " |", "|---" * (len(tiers) + 1) + "|"]
    for name, recipe in result["recipes"].items():
        cells = [
            f"{recipe['mean'][tier]:.1f} ({recipe['lowest'][tier]:.1f}-{recipe['highest'][tier]:.1f})" for tier in tiers
        ]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    rows.append("| most frequent answer | " + " | ".join(f"{result['majority'][tier]:.1f}" for tier in tiers) + " |")
    return "\n".join(rows)


def origin(result: dict[str, Any]) -> str:
    """Where the figures come from."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    return f"{result['steps']} steps, seeds {result['seeds']}; {result['device']}; {versions}; {result['date']}."


def plot(result: dict[str, Any], path: Path) -> None:
    """Plot P@1 by tier with the range over the seeds, and MLM loss by step and by time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    recipes, tiers = result["recipes"], list(result["majority"])
    figure = Figure(figsize=(11, 2.2 + 0.9 * len(tiers) + 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subfigures(2, 1, height_ratios=[1.2 + 0.9 * len(tiers), 3.5])
    axes = upper.subplots()
    height = 0.8 / len(recipes)
    for number, (name, recipe) in enumerate(recipes.items()):
        means = [recipe["mean"][tier] for tier in tiers]
        below = [recipe["mean"][tier] - recipe["lowest"][tier] for tier in tiers]
        above = [recipe["highest"][tier] - recipe["mean"][tier] for tier in tiers]
        places = [place + (number + 0.5) * height - 0.4 for place in range(len(tiers))]
        axes.barh(places, means, height * 0.9, xerr=[below, above], label=name, error_kw={"elinewidth": 0.8})
    for place, tier in enumerate(tiers):
        axes.plot([result["majority"][tier]] * 2, [place - 0.4, place + 0.4], color="black", linestyle=":")
    axes.set_yticks(range(len(tiers)), tiers)
    axes.invert_yaxis()
    axes.set_xlabel(f"P@1, percent; range over seeds {result['seeds']}; dotted: most frequent answer")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    for panel, key, label in zip(lower.subplots(1, 2, sharey=True), ("step", "seconds"), ("step", "s"), strict=True):
        for name, recipe in recipes.items():
            panel.plot(recipe["curve"][key], recipe["curve"]["mlm_loss"], label=name, linewidth=1)
        panel.set_xlabel(label)
        panel.set_ylabel("MLM loss")
        panel.set_yscale("log")
    figure.savefig(path, dpi=130)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", choices=("sample", "trex"), default="sample")
    parser.add_argument("--work", type=Path, required=True, help="folder for dataset and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="steps of every run (default: sample 2200, trex 600)")
    parser.add_argument(
        "--start-steps", type=int, default=1500, help="trex: steps of the model that all recipes continue"
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--only", nargs="+", help="names of the recipes to run (default: all)")
    parser.add_argument("--out", type=Path, help="default: docs/benchmarks/recipes_WORLD.json")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    work = options.work.resolve()
    steps = options.steps or (2200 if options.world == "sample" else 600)
    world = sample_world(work) if options.world == "sample" else trex(work, options.start_steps)
    names = [name for name in world.plan if not options.only or name in options.only]
    jobs = [(name, seed) for seed in options.seeds for name in names]
    runs = work / f"runs-{steps}"
    with ThreadPoolExecutor(options.jobs) as pool:
        folders = list(pool.map(lambda job: finish(world, runs, *job, steps), jobs))
    found: dict[str, list[Path]] = {name: [] for name in names}
    for (name, _), folder in zip(jobs, folders, strict=True):
        found[name].append(folder)
    result = report(found, steps, options.seeds)
    out = options.out or ROOT / "docs" / "benchmarks" / f"recipes_{options.world}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    plot(result, out.with_suffix(".png"))
    print(table(result))
    if options.out is None:
        page = ROOT / "docs" / "recipes.md"
        before, start, rest = page.read_text().partition(f"<!-- {options.world}-table -->\n")
        _, end, after = rest.partition(f"<!-- /{options.world}-table -->")
        page.write_text(f"{before}{start}{table(result)}\n\n{origin(result)}\n{end}{after}")


if __name__ == "__main__":
    main()
