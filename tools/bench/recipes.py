"""Compare recipes: pre-train each with several seeds for equal steps, probe it for facts, and write JSON and plots.

python tools/bench/recipes.py --work WORK [--world sample|trex] [--tried] [--seeds 0 1 2] [--jobs 2] [--only NAME ...]

Everything runs through the `trelm` command. It may be stopped at any time and go on on another machine: what a finished
run has shown is kept in docs/benchmarks/recipes_WORLD/, an unfinished run in WORK resumes. Seed by seed all recipes run
before the next seed begins, so that differences between recipes are differences of pairs.

--tried runs other settings of TRELM beside TRELM itself and the control, in search of better defaults; its results are
docs/benchmarks/recipes_WORLD_tried.json and a table of their own.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from few_shot import few_shot
from recipes_report import plot, report, tables

from trelm_ds.knowledge import draw_held_out, write_held_out

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
HELD_OUT = 0.2  # share of the T-REx probes whose triples are taken out of the graph
# A small margin, tried on the sample world with 5% held out; as many passes as the size of the graph allows.
VECTORS = ["--dim", "128", "--lr", "0.3", "--margin", "3", "--epochs"]
QUIET = ["--tracking.enabled", "false", "--loader.workers", "0", "--trainer.log_every", "20"]

# A recipe's own dose of facts is another thing than its method: the same number of facts as TRELM's in sizes/tiny.yaml.
_DOSE = ["--cka.mentions", "all", "--cka.facts_per_mention", "2", "--cka.negatives", "0"]
# name -> recipe file, overrides. "-" is TRELM less one part.
PLAN: dict[str, tuple[str, list[str]]] = {
    "mlm": ("mlm", []),
    "queries_only": ("queries_only", []),
    "trelm": ("trelm", []),
    "trelm - injection": ("trelm_without_injection", []),
    "trelm - memory": ("trelm_without_memory", []),
    "trelm - routing": ("trelm_without_routing", []),
    "trelm - 3.1": ("trelm_without_knowledge", []),
    "dkplm": ("dkplm", []),
    "dkplm, TRELM's dose": ("dkplm", _DOSE),
    "dkplm, EasyNLP's": ("dkplm_easynlp", []),
    "kepler": ("kepler", []),
    "trelm, ffn only": ("trelm", ["--routing.trainable", "ffn_only"]),
}
# Settings in which injection and memory might pay, "+" to TRELM's. VECTORS: a file of `trelm vectors train`.
_TRANSE = ["--injection.source", "transe", "--injection.file", "VECTORS"]
TRIED: dict[str, tuple[str, list[str]]] = {
    "queries_only": PLAN["queries_only"],
    "trelm": PLAN["trelm"],
    "+ names' mean": ("trelm", ["--injection.source", "alias_mean"]),
    "+ transe, fitted": ("trelm", [*_TRANSE, "--injection.projection", "fitted"]),
    "+ transe, trained": ("trelm", [*_TRANSE, "--injection.projection", "trained"]),
    "+ encoder, trained": ("trelm", ["--injection.projection", "trained"]),
    "+ all mentions": ("trelm", ["--selection.strategy", "all", "--selection.importance", "none"]),
    "+ half the weight": ("trelm", ["--injection.weight", "0.5"]),
    "+ in queries": ("trelm", ["--injection.places", "queries"]),
    "+ in text": ("trelm", ["--injection.places", "text"]),
    "+ in every pass": ("trelm", ["--injection.probability", "1.0"]),
    "+ memory to the end": ("trelm", ["--memory.beta", "1", "--memory.initial_lambda", "0.25"]),
    "+ fast memory": ("trelm", ["--memory.gamma", "0.5", "--memory.global_update", "ema"]),
    "+ near memory": ("trelm", ["--memory.window", "4"]),
    "+ queries at half the cost": ("trelm", ["--cka.max_token_share", "1.5"]),
    "+ more MLM": ("trelm", ["--cka.mlm_weight", "0.7"]),
}
_DOSES = ("injected_per_sequence", "facts_per_sequence", "mentions_per_sequence", "memory_lambda")


@dataclass
class World:
    """A dataset with its probes, and what its runs have in common."""

    name: str
    dataset: Path
    lama: Path
    overrides: list[str] = field(default_factory=list)
    probing: list[str] = field(default_factory=list)  # further arguments of `trelm evaluate lama`
    fine_tuned: bool = False  # also with few examples, and read by a linear probe
    vectors: Path = Path()  # of the graph, where a setting asks for them
    vector_epochs: int = 300  # of `trelm vectors train`


def run(log: Path, *command: str, fails: int = 0) -> None:
    """Run a command with its output in `log`; show the end of the log if it ends otherwise than with 0 or `fails`."""
    with log.open("a") as stream:
        done = subprocess.run(command, stdout=stream, stderr=stream, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode not in (0, fails):
        raise SystemExit(f"{' '.join(command)}\nfailed; {log} ends with\n{log.read_text()[-2000:]}")


def trelm(log: Path, *arguments: str) -> None:
    run(log, sys.executable, "-m", "trelm_ds", *arguments)


def sample_world(work: Path, steps: int) -> World:
    """Prepare the built-in world as the quickstart does, with scores of importance by a plain MLM model."""
    log, world, dataset = work / "prepare.log", work / "world", work / "dataset"
    if not (world / "lama").is_dir():
        run(log, sys.executable, str(ROOT / "tools" / "sample_world" / "generate.py"), "--out", str(world))
    text = ["--source", str(world / "wiki"), "--wikidata5m", str(world / "wikidata5m"), "--out", str(dataset)]
    trelm(log, "prepare", *text, *SAMPLE_SHAPE)
    plain_model(work, dataset, steps)
    vectors = work / "transe.safetensors"
    return World("sample", dataset, world / "lama", probing=["--dataset", str(dataset)], vectors=vectors)


def trex(work: Path, start_steps: int) -> World:
    """Prepare LAMA's T-REx evidence and graph without a fifth of the probes' facts, and the model that all continue."""
    log, dataset, held_out = work / "prepare.log", work / "dataset", work / "held_out.tsv"
    probed = probe_triples()
    write_held_out(held_out, probed[draw_held_out(probed, HELD_OUT, seed=0)])
    text = ["--source", str(SHARED / "corpus" / "trex_linked.jsonl.gz"), "--wikidata5m", str(SHARED / "wikidata5m")]
    shape = ["--tokenizer", "train", "--vocab-size", "8000", "--max-length", "64", "--hold-out-facts", str(held_out)]
    trelm(log, "prepare", *text, *shape, "--out", str(dataset))
    start = plain_model(work, dataset, start_steps)
    settings = ["--model.init_from", str(start), "--optimizer.lr", "1e-3"]
    probing = ["--dataset", str(dataset)]
    vectors = work / "transe.safetensors"
    return World("trex", dataset, SHARED / "lama", settings, probing, True, vectors, vector_epochs=30)


def train_vectors(world: World, log: Path) -> None:
    """Train vectors of the world's graph, unless they are there."""
    if not world.vectors.is_file():
        place = [str(world.dataset), "--out", str(world.vectors)]
        trelm(log, "vectors", "train", *place, *VECTORS, str(world.vector_epochs))


def probe_triples() -> np.ndarray:
    """Collect the facts that LAMA's T-REx probes ask for: int [N, 3], numbers of head, relation and tail."""
    found = set()
    for path in sorted((SHARED / "lama" / "TREx").glob("P*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for probe in map(json.loads, lines):
                found.add(tuple(int(probe[key][1:]) for key in ("sub_uri", "predicate_id", "obj_uri")))
    return np.array(sorted(found))


def plain_model(work: Path, dataset: Path, steps: int) -> Path:
    """Train a plain MLM model, score the mentions' importance with it, and return its folder."""
    log, start = work / "prepare.log", work / "start"
    if not (start / "model").is_dir():
        configs = ["--config", str(RECIPES / "sizes" / "tiny.yaml"), "--config", str(RECIPES / "mlm.yaml")]
        place = ["--data", str(dataset), "--out", str(start / "run")]
        # A seed that no compared run has.
        seeds = ["--trainer.seed", "1000", "--loader.seed", "1000", "--trainer.max_steps", str(steps)]
        trelm(log, "pretrain", *configs, *place, *QUIET, *seeds)
        trelm(log, "export", str(start / "run"), str(start / "model"))
    trelm(log, "importance", str(dataset), "--model", str(start / "model"))
    return start / "model"


def wanted_settings(settings: list[str]) -> dict[str, Any]:
    """Resolve settings; without those that concern the machine, and without what the start model decides."""
    command = [sys.executable, "-m", "trelm_ds", "pretrain", *settings, "--print-config"]
    printed = yaml.safe_load(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    kept = {section: values for section, values in printed.items() if section not in ("model", "tracking", "guards")}
    if file := kept["injection"]["file"]:
        kept["injection"]["file"] = Path(file).name
    return {section: values for section, values in kept.items() if section != "loader"} | {
        "loader": {name: kept["loader"][name] for name in ("seed", "window_blocks", "tail")}
    }


def run_settings(world: World, name: str, seed: int, steps: int, every: int) -> list[str]:
    """Write out the settings of a run that keeps a checkpoint every so many steps."""
    recipe, overrides = (PLAN | TRIED)[name]
    overrides = [str(world.vectors) if value == "VECTORS" else value for value in overrides]
    configs = ["--config", str(RECIPES / "sizes" / "tiny.yaml"), "--config", str(RECIPES / f"{recipe}.yaml")]
    seeds = ["--trainer.seed", str(seed), "--loader.seed", str(seed), "--trainer.max_steps", str(steps)]
    kept = ["--trainer.checkpoint_every", str(every), "--trainer.keep_every", str(every)]
    return [*configs, *QUIET, *seeds, *kept, *world.overrides, *overrides]


def slug_of(name: str, seed: int) -> str:
    """Name a run's folder and record."""
    return f"{re.sub('[^a-z0-9.]+', '_', name.lower()).strip('_')}-{seed}"


def finish(world: World, work: Path, name: str, seed: int, steps: int) -> Path:
    """Train, export and probe one run, or do what is missing; return its record."""
    slug = slug_of(name, seed)
    record = ROOT / "docs" / "benchmarks" / f"recipes_{world.name}" / f"{slug}.json"
    folder = work / f"runs-{steps}" / slug
    folder.mkdir(parents=True, exist_ok=True)
    log, result = folder / "log.txt", folder / "lama.json"
    place = ["--data", str(world.dataset), "--out", str(folder / "run")]
    settings = [*place, *run_settings(world, name, seed, steps, every=steps // 2)]
    wanted = wanted_settings(settings)
    if record.is_file():
        made = json.loads(record.read_text())["settings"]
        if made != wanted:
            raise SystemExit(
                f"{record}: made with other settings: {different(made, wanted)}; remove it to run it again"
            )
        return record
    trelm(log, "pretrain", *settings)
    trelm(log, "export", str(folder / "run"), str(folder / "model"))
    where = ["--model", str(folder / "model"), "--data", str(world.lama), "--out", str(result)]
    trelm(log, "evaluate", "lama", *where, *world.probing)
    record.parent.mkdir(parents=True, exist_ok=True)
    if wanted["injection"]["source"] != "none" and wanted["selection"]["strategy"] != "none":
        gate = folder / "gate.json"
        look = [str(ROOT / "tools" / "bench" / "injection.py"), str(folder / "run"), "--data", str(world.dataset)]
        run(log, sys.executable, *look, "--steps", "24", "--out", str(gate), fails=1)
    found = {"name": name, "seed": seed, "steps": steps, "settings": wanted, **shown(folder, wanted)}
    if world.fine_tuned:
        found["few_shot"] = few_shot(folder / "model", work)
    record.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{name}, seed {seed}: done", flush=True)
    return record


def different(made: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Name the settings in which two runs differ."""
    flat = [{f"{section}.{name}": value for section, part in one.items() for name, value in part.items()}
            for one in (made, wanted)]  # fmt: skip
    return ", ".join(name for name in sorted({*flat[0], *flat[1]}) if flat[0].get(name) != flat[1].get(name))


def shown(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Collect what a run has shown: P@1 by kind of fact in percent, doses, and the curve of its MLM loss."""
    part = json.loads((folder / "lama.json").read_text())["parts"]["trex"]
    groups = part["groups"]
    kinds = {**(groups.get("tier") or groups.get("graph", {})), **groups.get("subject", {}), "all": part}
    points = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    batch = settings["trainer"]["global_batch_size"]
    return {
        "p_at_1": {kind: round(100 * score["p_at_1"], 2) for kind, score in kinds.items()},
        "majority": {kind: round(100 * score["majority_baseline"]["p_at_1"], 2) for kind, score in kinds.items()},
        "facts": {kind: score["n_facts"] for kind, score in kinds.items()},
        "doses": {
            name: round(statistics.mean(values), 3)
            for name in _DOSES
            if (values := [point[name] for point in points if name in point])
        },
        "gate": gate_of(folder / "gate.json"),
        "seconds_per_step": round(batch / statistics.median(point["sequences_per_s"] for point in points), 4),
        "curve": {
            "step": [point["step"] for point in points],
            "mlm_loss": [round(point["mlm_loss"], 4) for point in points],
        },
    }


def gate_of(file: Path) -> dict[str, dict[str, Any]]:
    """Collect, by step, how far h_e is on the way from the mean vector to the own words; none without injection."""
    if not file.is_file():
        return {}
    checkpoints = json.loads(file.read_text())["checkpoints"].items()
    return {step: {"loss": one["loss"], "way": one["way"], "passes": one["passes"]} for step, one in checkpoints}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", choices=("sample", "trex"), default="sample")
    parser.add_argument("--work", type=Path, required=True, help="folder for dataset and runs")
    parser.add_argument("--tried", action="store_true", help="other settings of TRELM instead of the recipes")
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
    world = sample_world(work, steps) if options.world == "sample" else trex(work, options.start_steps)
    plan, kind = (TRIED, f"{options.world}_tried") if options.tried else (PLAN, options.world)
    names = [name for name in plan if not options.only or name in options.only]
    jobs = [(name, seed) for seed in options.seeds for name in names]
    if any("VECTORS" in plan[name][1] for name in names):
        train_vectors(world, work / "prepare.log")
    with ThreadPoolExecutor(options.jobs) as pool:
        records = list(pool.map(lambda job: finish(world, work, *job, steps), jobs))
    result = report([json.loads(record.read_text()) for record in records])
    out = options.out or ROOT / "docs" / "benchmarks" / f"recipes_{kind}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    plot(result, out.with_suffix(".png"))
    print(tables(result))
    if options.out is None:
        page = ROOT / "docs" / "recipes.md"
        before, start, rest = page.read_text().partition(f"<!-- {kind}-table -->\n")
        _, end, after = rest.partition(f"<!-- /{kind}-table -->")
        page.write_text(f"{before}{start}{tables(result)}\n{end}{after}")


if __name__ == "__main__":
    main()
