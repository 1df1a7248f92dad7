"""Hold the planner's order of choices to a measured one: eight choices on this node, each run for some steps.

    python tools/bench/planned_speed.py --data DATASET [--config FILE ... --SETTING VALUE ...] [--choices 8]
        [--steps 20] [--ranks 1] [--trial-minutes 10] [--folder FOLDER] [--out FILE]

The choices are spread evenly over the plan, from the fastest to the slowest. The planner reckons with this device as
one matrix product and one copy measure it. Each choice is a trial of `trelm tune`: a process of its own, which must
have the cores to itself. With --folder trials are kept there, and a start that was interrupted is gone on with.
Without --config the model is recipes/sizes/small.yaml under recipes/mlm.yaml, with 512 sequences a step.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from compact import with_table
from jsonargparse import ArgumentParser

from trelm_ds import log
from trelm_ds.config import Config, flatten
from trelm_ds.planning import rank_correlation
from trelm_ds.planning.candidates import Candidates
from trelm_ds.planning.node import device_here, hardware, this_node
from trelm_ds.planning.plan import Planned, Planner
from trelm_ds.planning.samples import open_for_planning
from trelm_ds.planning.trial import Limits
from trelm_ds.planning.trials import Result, Trials, check_same, identity_of, remember, remembered_device
from trelm_ds.planning.tune import taken
from trelm_ds.progress import track
from trelm_ds.settings import add_settings, parse

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "trelm_ds" / "recipes"
PAGE, MARK = ROOT / "docs" / "tuning.md", "speed-table"
DEFAULT = ["--config", str(RECIPES / "sizes" / "small.yaml"), "--config", str(RECIPES / "mlm.yaml")]
DEFAULT += ["--trainer.global_batch_size", "512"]


def spread(rows: list[Planned], number: int) -> list[Planned]:
    """Take so many rows, evenly from the fastest to the slowest."""
    rows = sorted(rows, key=lambda row: -row.tokens_per_s)
    if len(rows) <= number:
        return rows
    return [rows[round(place * (len(rows) - 1) / (number - 1))] for place in range(number)]


def measured(config: Config, options: Any, folder: Path) -> tuple[list[Result], dict[str, Any]]:
    """Plan, and run the choices that are spread over the plan, or take their results; return also the device."""
    data, known = open_for_planning(config, options.data), remembered_device(folder)
    device = device_here("this") if known is None else known[0]
    node = this_node(device, options.ranks, None)
    planner = Planner(config, node, data)
    limits = Limits(options.steps, 60 * options.trial_minutes, 0)
    shared = {"machine": hardware(), "--ranks": options.ranks, "--data": data.steps.reader.manifest.fingerprint}
    identity = identity_of(config, planner.configured, limits, shared)
    if known is None:
        remember(folder, device, identity)
    else:
        check_same(folder, known[1], identity)
    trials = Trials(config, folder, options.data, options.ranks, limits, planner.ds_config, identity)
    rows = list(Candidates(planner.plan(), planner.configured).rows.values())
    chosen = track(spread(rows, options.choices), "trials", options.choices)
    return [trials.kept(row) or trials.run(row, lambda: False) for row in chosen], device._asdict()


def report(config: Config, options: Any, results: list[Result], device: dict[str, Any]) -> dict[str, Any]:
    """Collect planned and measured speeds, and how their orders compare."""
    done = [result for result in results if result.outcome.status == "ok"]
    return {
        "device": device,
        "machine": hardware(),
        "threads": torch.get_num_threads(),
        "load_at_the_end": os.getloadavg(),
        "date": datetime.date.today().isoformat(),
        "versions": {name: version(name) for name in ("torch", "deepspeed")},
        "ranks": options.ranks,
        "steps": options.steps,
        "settings": {name: value for name, value in flatten(config).items() if not name.startswith("tracking.")},
        "choices": [result.to_plain() for result in results],
        "rank_correlation": rank_correlation(done),
    }


def table(result: dict[str, Any]) -> str:
    """Format planned and measured speeds as Markdown."""
    lines = ["| choice | planned tokens/s | measured | planned / measured | status |", "|---|---|---|---|---|"]
    for choice in result["choices"]:
        plan, found = choice["planned"]["tokens_per_s"], choice["tokens_per_s"]
        times = "" if not found else f"{plan / found:.2f}"
        shown = "" if found is None else f"{found:,.0f}"
        lines.append(f"| {choice['name']} | {plan:,.0f} | {shown} | {times} | {choice['status']} |")
    found = result["rank_correlation"]
    versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items())
    about = "no rank correlation" if found is None else f"Spearman's rank correlation {found:.2f}"
    ranks = f"{result['ranks']} rank(s), {result['threads']} thread(s)"
    return "\n".join([*lines, "", f"{about}. {result['machine']}, {ranks}; {versions}; {result['date']}."])


@contextlib.contextmanager
def folder_of(options: Any) -> Iterator[Path]:
    """Give the folder of trials, a temporary one unless it is named, to this process alone."""
    with contextlib.ExitStack() as held:
        folder = Path(options.folder or held.enter_context(tempfile.TemporaryDirectory()))
        held.enter_context(taken(folder))
        yield folder


def main() -> None:
    log.setup()
    parser = ArgumentParser(description=__doc__.splitlines()[0], exit_on_error=False, print_config=None)
    parser.add_argument("--data", required=True)
    parser.add_argument("--choices", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--trial-minutes", type=float, default=10.0)
    parser.add_argument("--folder", type=str, default=None)
    parser.add_argument("--out", type=str, default=None, help="default: docs/benchmarks/planned_speed.json; the page")
    add_settings(parser)
    given = sys.argv[1:]
    named = any(argument.partition("=")[0] == "--config" for argument in given)
    config, options = parse(parser, given if named else [*DEFAULT, *given])
    if options.choices < 2:
        raise SystemExit("--choices: at least 2, or there is no order")
    with folder_of(options) as folder:
        result = report(config, options, *measured(config, options, folder))
    print(table(result))
    out = Path(options.out) if options.out else ROOT / "docs" / "benchmarks" / "planned_speed.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    if options.out is None:
        PAGE.write_text(with_table(PAGE.read_text(), table(result), MARK, PAGE))


if __name__ == "__main__":
    main()
