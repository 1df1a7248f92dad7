"""`trelm plan`: memory and speed of a run before it is started."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trelm_ds.errors import UserError

if TYPE_CHECKING:
    from trelm_ds.config import Config
    from trelm_ds.planning import Choice, Plan


def plan_command(arguments: list[str]) -> int:
    from jsonargparse import ArgumentParser

    from trelm_ds.settings import add_settings, parse

    parser = ArgumentParser(
        prog="trelm plan",
        usage="trelm plan --config FILE ... --gpu NAME [--nodes N] [--gpus-per-node N] [--data DATASET] "
        "[--write FILE] [--plot FILE] [--json] [--all] [--SETTING VALUE ...]",
        description="Plan a run: for every ZeRO stage, tensor parallelism, size of micro-batches, activation "
        "checkpointing and optimizer offload, what a GPU holds and how long a step takes; what fits, the fastest "
        "first, and why the rest does not. Nothing is trained, and no GPU is needed. Exit code 1 if nothing fits.",
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
    )
    add = parser.add_argument
    add("--data", type=str, default=None, help="dataset of `trelm prepare`, whose batches are planned with")
    add("--gpu", type=str, default=None, help="a100-40g, a100-80g, h100, h200, a size such as 48g, or this: measured")
    add("--nodes", type=int, default=1, help="number of nodes")
    add("--gpus-per-node", type=int, default=8, help="number of GPUs of a node")
    add("--write", type=str, default=None, help="YAML file for the best choice's settings, with its DeepSpeed file")
    add("--plot", type=str, default=None, help="picture of the memory (.png, .pdf, .svg)")
    add("--json", action="store_true", help="print all choices as JSON")
    add("--all", action="store_true", help="print all choices")
    add_settings(parser)
    config, given = parse(parser, arguments)
    return _plan(config, given)


def _plan(config: Config, given: Any) -> int:
    plot_file, settings_file = (None if path is None else Path(path) for path in (given.plot, given.write))
    _check(given, plot_file, settings_file)
    from trelm_ds.planning import Machine, Planner, device_of, open_for_planning, plot, write_choice
    from trelm_ds.progress import ProgressBar

    machine = Machine(device_of(given.gpu), given.nodes, given.gpus_per_node)
    data = None if given.data is None else open_for_planning(config, given.data)
    planner = Planner(config, machine, data)
    with ProgressBar("plan", len(planner.choices)) as bar:
        plan = planner.plan(bar.advance)
    _print(plan, planner.configured, given)
    if plot_file is not None:
        plot(plan, plot_file)
        if not given.json:
            print(f"picture: {plot_file}")
    if plan.best is None:
        return 1
    if settings_file is not None:
        about = f"planned for {machine.nodes} x {machine.per_node} {machine.device.name}: {plan.best.choice.name}"
        written = write_choice(plan.best.choice, planner.ds_config(plan.best.choice), settings_file, about)
        if not given.json:
            print(f"settings: {written[0]}, with {written[1]}; use them: trelm pretrain ... --config {written[0]}")
    return 0


def _check(given: Any, plot_file: Path | None, settings_file: Path | None) -> None:
    if given.gpu is None:
        raise UserError("--gpu: required: a100-40g, a100-80g, h100, h200, a size such as 48g, or this")
    for name in ("nodes", "gpus_per_node"):
        if getattr(given, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: must be at least 1, got {getattr(given, name)}")
    if plot_file is not None and plot_file.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise UserError(f"--plot: give a .png, .pdf or .svg file, not {plot_file}")
    if settings_file is not None and settings_file.suffix not in (".yaml", ".yml"):
        raise UserError(f"--write: give a .yaml file, not {settings_file}")
    for name, file in (("--plot", plot_file), ("--write", settings_file)):
        if file is not None and not file.absolute().parent.is_dir():
            raise UserError(f"{name}: {file.absolute().parent} is no folder; make it first")
        if file is not None and (file.is_dir() or not os.access(file.absolute().parent, os.W_OK)):
            raise UserError(f"{name}: {file} cannot be written; give a file in a folder of yours")


def _print(plan: Plan, configured: Choice, given: Any) -> None:
    from trelm_ds.planning import print_table, to_plain, to_table

    if given.json:
        print(json.dumps(to_plain(plan), indent=1))
    else:
        print_table(to_table(plan, configured, everything=given.all))
