"""`trelm convert`."""

from __future__ import annotations

import argparse
from pathlib import Path

from trelm_ds.errors import UserError
from trelm_ds.visible import visible

PROJECTS = ("kepler", "colake", "ernie", "luke", "dkplm")


def add_convert(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "convert",
        help="turn a related project's checkpoint into a Hugging Face folder",
        description="Take the plain BERT or RoBERTa out of a checkpoint that a related project published.",
    )
    parser.add_argument("source", type=Path, metavar="CHECKPOINT", help="file of weights, or the folder that holds it")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write, for transformers; must not exist")
    parser.add_argument("--from", dest="project", choices=PROJECTS, required=True, help="whose checkpoint it is")
    parser.add_argument(
        "--tokenizer", type=Path, help="folder of the model's tokenizer (default: the one beside the weights)"
    )
    parser.add_argument("--heads", type=int, help="number of attention heads, where the checkpoint does not say it")
    parser.set_defaults(action=_convert)


def _convert(namespace: argparse.Namespace) -> int:
    from trelm_ds.relatives import convert

    if namespace.heads is not None and namespace.heads < 1:
        raise UserError(f"--heads: must be at least 1, got {namespace.heads}")
    report = convert(namespace.project, namespace.source, namespace.out, namespace.tokenizer, namespace.heads)
    print(visible(f"{namespace.out}: converted from {namespace.source}\n{report}"))
    return 0
