"""`trelm pretrain` and the commands that work on its runs: checkpoints, sync, export."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from trelm_ds.errors import UserError
from trelm_ds.visible import visible


def pretrain_command(arguments: list[str]) -> int:
    # Until training begins there is nothing to save, so let Ctrl-C end the process at once: a KeyboardInterrupt in the
    # middle of an import may surface anywhere.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from jsonargparse import ArgumentParser

    from trelm_ds.config import public, to_yaml
    from trelm_ds.settings import add_settings, parse

    parser = ArgumentParser(
        prog="trelm pretrain",
        description="Train on a prepared dataset; use torchrun for several ranks. An existing run in --out is resumed.",
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
    )
    parser.add_argument("--data", type=str, default=None, help="dataset of `trelm prepare`: folder or fsspec URL")
    parser.add_argument(
        "--out", type=str, default=None, help="run folder for checkpoints, metrics and resolved settings"
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings as YAML and exit")
    add_settings(parser)
    config, namespace = parse(parser, arguments)
    if namespace.print_config:
        print(to_yaml(public(config)), end="")
        return 0
    for name in ("data", "out"):
        if getattr(namespace, name) is None:
            raise UserError(f"--{name}: required; see `trelm pretrain --help`")
    from trelm_ds.training import FailedElsewhereError, pretrain

    try:
        return pretrain(config, namespace.data, Path(namespace.out))
    except FailedElsewhereError:  # already reported
        return 1


def add_checkpoints(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "checkpoints",
        help="list, check or prune a run's checkpoints",
        description="List the committed checkpoints of a run. Exit code 1 if --verify finds a damaged one.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of `trelm pretrain`")
    parser.add_argument("--verify", action="store_true", help="check the size and hash of every file")
    parser.add_argument(
        "--prune",
        type=int,
        metavar="KEEP",
        help="keep the newest KEEP (at least 2) sound checkpoints, remove the others",
    )
    parser.set_defaults(action=_checkpoints)


def _checkpoints(namespace: argparse.Namespace) -> int:
    from trelm_ds.checkpoints import list_checkpoints, prune_run, to_table

    if namespace.prune is not None:
        for path in prune_run(namespace.run, namespace.prune):
            print(f"{path}: removed")
    found = list_checkpoints(namespace.run, namespace.verify)
    print(visible(to_table(found, namespace.run, namespace.verify) if found else f"{namespace.run}: no checkpoint yet"))
    return int(any(entry.problem for entry in found))


def add_sync(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "sync",
        help="send a run's unsent log points to MLflow",
        description="Send what MLflow did not receive while the run was training. A resumed run does this by itself. "
        "Nothing is sent twice, so the command may be repeated.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder; of `trelm evaluate` the .runs beside --out")
    parser.add_argument("--uri", help="tracking URI (default: the run's own)")
    parser.add_argument("--experiment", help="experiment for a run that MLflow does not have (default: the run's own)")
    parser.set_defaults(action=_sync)


def _sync(namespace: argparse.Namespace) -> int:
    from trelm_ds.tracking import sync_all

    number, address = sync_all(namespace.run, namespace.uri, namespace.experiment)
    print(f"{namespace.run}: {number} entries sent to {address}")
    return 0


def add_export(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("export", help="export a checkpoint as a Hugging Face folder")
    parser.add_argument(
        "source", type=Path, metavar="RUN|CHECKPOINT", help="run folder (its last checkpoint) or checkpoint"
    )
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="folder to write, for AutoModelForMaskedLM.from_pretrained"
    )
    parser.set_defaults(action=_export)


def _export(namespace: argparse.Namespace) -> int:
    from trelm_ds.checkpoints import export

    exported = export(namespace.source, namespace.out)
    print(f"{namespace.out}: exported from {exported}")
    return 0
