"""`trelm submit` and `trelm status`: jobs under Slurm."""

from __future__ import annotations

import argparse
from pathlib import Path

from trelm_ds import log
from trelm_ds.errors import UserError
from trelm_ds.visible import visible


def submit_command(arguments: list[str]) -> int:
    from jsonargparse import ArgumentParser

    from trelm_ds.cluster.submit import DEFAULT_SCRIPT, check, dry_run, sbatch_test_only, submit
    from trelm_ds.settings import add_settings, parse

    parser = ArgumentParser(
        prog="trelm submit",
        usage="trelm submit --config FILE ... --data DATASET --out RUN [-N NODES] [--script FILE] [--dry-run] "
        "[--SETTING VALUE ...] [-- SBATCH OPTIONS]",
        description="Check settings, dataset and site, save code and settings in RUN/submissions/NNN, and submit a job "
        "that trains with them. Options after -- go to sbatch: -- --partition=gpu --time=12:00:00",
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
    )
    parser.add_argument("--data", type=str, default=None, help="dataset of `trelm prepare`: folder or fsspec URL")
    parser.add_argument("--out", type=str, default=None, help="run folder; an existing run is resumed")
    parser.add_argument("-N", "--nodes", type=int, default=None, help="number of nodes (default: the script's)")
    parser.add_argument("--script", type=str, default=DEFAULT_SCRIPT, help="job script")
    parser.add_argument(
        "--dry-run", action="store_true", help="write nothing; print the sbatch file and Slurm's answer"
    )
    add_settings(parser)
    at = arguments.index("--") if "--" in arguments else len(arguments)
    config, given = parse(parser, arguments[:at])
    for name in ("data", "out"):
        if getattr(given, name) is None:
            raise UserError(f"--{name}: required; see `trelm submit --help`")
    request = check(config, given.data, Path(given.out), given.nodes, given.script, arguments[at + 1 :])
    if given.dry_run:
        print(text := dry_run(request), end="", flush=True)
        if (answer := sbatch_test_only(request, text)) is not None:
            log.info(answer)
        return 0
    submitted = submit(request)
    print(f"job       {submitted.job}")
    print(f"log       {submitted.log}")
    print(f"run       {request.run}")
    print(f"snapshot  {submitted.folder}")
    print(f"MLflow    {submitted.store}")
    print(f"status    trelm status {given.out}")
    return 0


def add_status(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "status",
        help="show how runs are doing",
        description="Show the state of runs, their progress, speed and expected end; several runs make a table. Exit "
        "code 0 even if a run has failed, 2 if a folder is not a run.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder")
    parser.add_argument("--json", action="store_true", help="print a JSON list with an object for each run")
    parser.set_defaults(action=_status)


def _status(namespace: argparse.Namespace) -> int:
    from trelm_ds.cluster.status import is_run, status_of
    from trelm_ds.cluster.status_text import to_json, to_lines, to_table

    found = [status_of(run) for run in namespace.runs if is_run(run)]
    if namespace.json:
        print(to_json(found))
    elif len(namespace.runs) == 1:
        print(visible("".join(map(to_lines, found))), end="")
    elif found:
        print(visible(to_table(found)))
    if missing := [str(run) for run in namespace.runs if not is_run(run)]:
        raise UserError(f"{', '.join(missing)}: no run folder of `trelm pretrain` or `trelm submit`")
    return 0
