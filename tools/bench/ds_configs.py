"""Plan every shipped DeepSpeed file for every size: memory of a GPU, and tokens/s.

    python tools/bench/ds_configs.py [--gpu a100-80g] [--gpus-per-node 8] [--sizes base large xl]

One node; everything else is as the size's file has it. Nothing is measured: see docs/planning.md for what a plan is.
The table goes into ds_configs/README.md.
"""

from __future__ import annotations

import argparse
import datetime
from dataclasses import replace
from pathlib import Path

from compact import SIZES, with_table
from jsonargparse import ArgumentParser

from trelm_ds.config import Config
from trelm_ds.planning import Machine, Planned, Planner, device_of
from trelm_ds.planning.hardware import GIB
from trelm_ds.settings import add_settings, parse

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "ds_configs"
PAGE, MARK = FOLDER / "README.md", "planned-table"


def size(name: str) -> Config:
    """Read a file of recipes/sizes."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, print_config=None)
    add_settings(parser)
    config: Config = parse(parser, ["--config", str(SIZES / f"{name}.yaml")])[0]
    return config


def planned(config: Config, file: Path, machine: Machine) -> Planned:
    """Plan a size with a DeepSpeed file."""
    given = replace(config, trainer=replace(config.trainer, ds_config=str(file)))
    planner = Planner(given, machine, None)
    return planner.planned(planner.configured)


def cell(row: Planned) -> str:
    """Format peak, the model's states in it, and speed."""
    if row.memory is None:
        return row.problem
    states = (row.memory.weights + row.memory.optimizer + row.memory.gradients) / GIB
    text = f"{row.memory.peak / GIB:.1f} GiB ({states:.1f} states)"
    return f"{text}, does not fit" if row.problem else f"{text}, {row.tokens_per_s / 1000:,.0f}k tokens/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", default="a100-80g")
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--sizes", nargs="+", default=["base", "large", "xl"], help="files of recipes/sizes")
    options = parser.parse_args()
    machine = Machine(device_of(options.gpu), 1, options.gpus_per_node)
    lines = [f"| file | {' | '.join(options.sizes)} |", "|---" * (len(options.sizes) + 1) + "|"]
    for file in sorted(FOLDER.glob("*.json")):
        cells = [cell(planned(size(name), file, machine)) for name in options.sizes]
        lines.append(f"| `{file.name}` | {' | '.join(cells)} |")
    degrees = ", ".join(f"{name} {size(name).model.tensor_parallel}" for name in options.sizes)
    about = (
        f"Planned, not measured, for {options.gpus_per_node} x {options.gpu} in one node by `tools/bench/ds_configs.py`"
        f", {datetime.date.today().isoformat()}: the most that a GPU holds, of which weights, optimizer states and "
        "accumulated gradients; tokens of text per second. Vectors and memory bank come on top. Tensor parallelism as "
        f"the sizes have it: {degrees}."
    )
    table = "\n".join([*lines, "", about])
    print(table)
    PAGE.write_text(with_table(PAGE.read_text(), table, MARK, PAGE))


if __name__ == "__main__":
    main()
