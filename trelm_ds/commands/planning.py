"""`trelm plan` and `trelm tune`: memory and speed of a run before it is started, planned and measured."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trelm_ds.errors import UserError

if TYPE_CHECKING:
    from trelm_ds.config import Config
    from trelm_ds.planning import Choice, Machine, Plan, Planner, TuneOptions, Tuner

# Options that are no settings of a run.
_OF_PLAN = {"--data", "--gpu", "--nodes", "--gpus-per-node", "--host-memory", "--write", "--plot"}
_SWITCHES_OF_PLAN = {"--json", "--all"}
_OF_TUNE = {"--data", "--out", "--budget-minutes", "--trials", "--steps", "--trial-minutes", "--gpu", "--ranks"}
_OF_TUNE |= {"--memory-limit"}
_MOST = 1_000_000


def plan_command(arguments: list[str]) -> int:
    from jsonargparse import ArgumentParser

    from trelm_ds.settings import add_settings, parse

    parser = ArgumentParser(
        prog="trelm plan",
        usage="trelm plan --config FILE ... --gpu NAME [--nodes N] [--gpus-per-node N] [--data DATASET] "
        "[--host-memory SIZE] [--write FILE] [--plot FILE] [--json] [--all] [--SETTING VALUE ...]",
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
    add("--gpus-per-node", type=int, default=None, help="number of GPUs of a node; default: 8, with `this` what it has")
    add("--host-memory", type=str, default=None, help="CPU memory of a node, such as 1000g, for optimizer offload")
    add("--write", type=str, default=None, help="YAML file for the best choice's settings, with its DeepSpeed file")
    add("--plot", type=str, default=None, help="picture of the memory (.png, .pdf, .svg)")
    add("--json", action="store_true", help="print all choices as JSON")
    add("--all", action="store_true", help="print all choices")
    add_settings(parser)
    config, given = parse(parser, arguments)
    return _plan(config, given, arguments)


def _plan(config: Config, given: Any, arguments: list[str]) -> int:
    plot_file, settings_file = (None if path is None else Path(path) for path in (given.plot, given.write))
    _check(given, plot_file, settings_file)
    from trelm_ds.planning import Planner, open_for_planning, plot
    from trelm_ds.progress import ProgressBar

    machine = _machine(given)
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
        _write(planner, plan.best.choice, settings_file, given, arguments)
    return 0


def _machine(given: Any) -> Machine:
    from trelm_ds.planning import device_of, ranks_here, this_node

    per_node = given.gpus_per_node or (ranks_here(None) if given.gpu == "this" else 8)
    # A CPU's memory and speed are shared by the ranks of a node.
    machine = this_node(device_of(given.gpu), per_node, None)._replace(nodes=given.nodes)
    if given.host_memory is not None:
        return machine._replace(host=_bytes("--host-memory", given.host_memory))
    return machine if given.gpu == "this" else machine._replace(host=None)


def _write(planner: Planner, best: Choice, file: Path, given: Any, arguments: list[str]) -> None:
    """Write the best choice down, and say how to use it."""
    from trelm_ds.planning import command_to_use, without, write_choice

    machine = planner.machine
    about = f"planned for {machine.nodes} x {machine.per_node} {machine.device.name}: {best.name}"
    settings, ds_file = write_choice(best, planner.ds_config(best), file, about)
    if not given.json:
        mine = without(arguments, _OF_PLAN, _SWITCHES_OF_PLAN)
        data = "DATASET" if given.data is None else given.data
        print(f"settings: {settings}, with {ds_file}")
        print(f"use it: {command_to_use(mine, data, settings, machine.per_node, machine.nodes)}")


def _check(given: Any, plot_file: Path | None, settings_file: Path | None) -> None:
    if given.gpu is None:
        raise UserError("--gpu: required: a100-40g, a100-80g, h100, h200, a size such as 48g, or this")
    for name in ("nodes", "gpus_per_node"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
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


def tune_command(arguments: list[str]) -> int:
    from jsonargparse import ArgumentParser

    from trelm_ds.settings import add_settings, parse

    parser = ArgumentParser(
        prog="trelm tune",
        usage="trelm tune --config FILE ... --data DATASET --out FOLDER [--budget-minutes M] [--trials K] [--steps N] "
        "[--trial-minutes M] [--gpu this|NAME] [--ranks N] [--memory-limit SIZE] [--SETTING VALUE ...]",
        description="Try the plan's best choices in short runs on this node, in processes of their own: the fastest "
        "ZeRO stage, tensor parallelism, size of micro-batches and so on, by measurement. What runs out of memory, "
        "crashes or hangs is a result like others. The same command goes on where it was stopped. Writes trials, a "
        "table, a picture and the best settings to FOLDER. Exit code 1 if no trial went well.",
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
    )
    add = parser.add_argument
    add("--data", type=str, default=None, help="dataset of `trelm prepare`: folder or fsspec URL")
    add("--out", type=str, default=None, help="folder for trials and results; one that has some is gone on with")
    add("--budget-minutes", type=float, default=60.0, help="begin no trial once all of them have taken so long")
    add("--trials", type=int, default=8, help="number of trials")
    add("--steps", type=int, default=20, help="steps of a trial, of which the first quarter is not counted")
    add("--trial-minutes", type=float, default=5.0, help="end a trial that has not taken its steps by then")
    add("--gpu", type=str, default="this", help="plan with this machine as measured, or as a known GPU: a100-80g ...")
    add("--ranks", type=int, default=None, help="processes on this node; default: its GPUs, one without")
    add("--memory-limit", type=str, default=None, help="memory of each rank on a CPU, such as 8g; default: its part")
    add_settings(parser)
    config, given = parse(parser, arguments)
    for name in ("data", "out"):
        if not getattr(given, name):  # empty as well, as of a variable that is not set
            raise UserError(f"--{name}: required; see `trelm tune --help`")
    return _tune(config, _tune_options(given), arguments)


def _tune_options(given: Any) -> TuneOptions:
    from trelm_ds.planning import TuneOptions, ranks_here

    for name, least in (("budget_minutes", 0), ("trial_minutes", 0), ("trials", 1), ("steps", 2), ("ranks", 1)):
        value, option = getattr(given, name), f"--{name.replace('_', '-')}"
        if value is not None and (value < least or value == 0):
            raise UserError(f"{option}: must be {f'at least {least}' if least else 'greater than 0'}, got {value}")
        if value is not None and value > _MOST:  # no trial could have settings of its own for it
            raise UserError(f"{option}: must be at most {_MOST:,}, got {value}")
    return TuneOptions(
        data=given.data,
        folder=Path(given.out),
        budget_minutes=given.budget_minutes,
        trials=given.trials,
        steps=given.steps,
        trial_minutes=given.trial_minutes,
        gpu=given.gpu,
        ranks=ranks_here(given.ranks),
        memory=None if given.memory_limit is None else _bytes("--memory-limit", given.memory_limit),
    )


def _bytes(option: str, text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([mgt])(?:i?b)?", text.lower())
    if match is None or not float(match[1]):
        raise UserError(f"{option}: give a size such as 8g or 500m, not '{text}'")
    return int(float(match[1]) * 2 ** {"m": 20, "g": 30, "t": 40}[match[2]])


def _tune(config: Config, options: TuneOptions, arguments: list[str]) -> int:
    from trelm_ds.planning import Stopped, Tuner, taken
    from trelm_ds.stopping import StopSignals, describe, exit_code

    with StopSignals() as signals, taken(options.folder):
        try:
            tuner = Tuner(config, options, lambda: signals.received)
            code = _report(tuner, options, arguments)
        except Stopped:
            code = 1
        if signals.received:
            print(f"stopped by {describe(signals.received)}; the same command goes on")
            return exit_code(signals.received)
        return code


def _report(tuner: Tuner, options: TuneOptions, arguments: list[str]) -> int:
    """Tune, print what was found and write it down; return the exit code."""
    from trelm_ds.planning import (
        command_to_use,
        plot_tuned,
        print_table,
        rank_correlation,
        tuned_to_table,
        without,
        write_choice,
        write_results,
    )

    tuned, folder = tuner.run(), options.folder
    # All is written before anything is printed: whoever reads that may be gone (`| tee` ends by Ctrl-C as well).
    write_results(tuned, folder / "results.json")
    files, metrics = ["results.json"], {"trials": float(len(tuned.tried)), "trials_ok": float(len(tuned.done))}
    lines = list[str]()
    if (best := tuned.best) is not None:
        about = f"trelm tune: {best.choice.name}, {best.outcome.tokens_per_s:,.0f} tokens/s on {options.ranks} ranks"
        settings, ds_file = write_choice(best.choice, tuner.trials.ds_config(best.choice), folder / "best.yaml", about)
        plot_tuned(tuned.done, folder / "tune.png")
        lines.append(f"best: {best.choice.name}; settings: {settings}, with {ds_file}; picture: {folder / 'tune.png'}")
        lines.append(f"use it: {command_to_use(without(arguments, _OF_TUNE), options.data, settings, options.ranks)}")
        files += ["tune.png", settings.name, ds_file.name]
        metrics["tokens_per_s"] = best.outcome.tokens_per_s or 0.0
    elif tuned.complete:
        lines.append(f"no trial went well; their logs are in {folder / 'trials'}" if tuned.tried else "nothing fits")
    print_table(tuned_to_table(tuned))
    for line in lines:
        print(line)
    if (found := rank_correlation(tuned.done)) is not None:
        metrics["rank_correlation"] = found
    if tuned.complete:
        tuner.finished(metrics, files)
    return 0 if best is not None else 1
