"""`trelm neurons`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from trelm_ds.commands.result_file import check_result_file
from trelm_ds.errors import UserError
from trelm_ds.files import write_atomically
from trelm_ds.visible import visible


def add_neurons(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "neurons",
        help="list the feed-forward neurons a fact comes from",
        description="Attribute the answer of a cloze question to neurons (Eq. 11).",
    )
    parser.add_argument(
        "source", type=Path, metavar="RUN|CHECKPOINT|MODEL", help="run, checkpoint or Hugging Face folder"
    )
    parser.add_argument("--prompt", required=True, help="sentence with [MASK] in place of the answer")
    parser.add_argument("--answer", required=True, help="the answer")
    parser.add_argument("--top", type=int, default=20, help="number of neurons to list (default: %(default)s)")
    parser.add_argument(
        "--quadrature", choices=("gauss3", "right20"), default="gauss3", help="quadrature rule (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the numbers; a heat map is saved next to it")
    parser.set_defaults(action=_neurons)


def _neurons(namespace: argparse.Namespace) -> int:
    from trelm_ds.checkpoints import open_model
    from trelm_ds.corpus import load_tokenizer
    from trelm_ds.routing import PATHS_FILE, ROUTING_FOLDER, explain, frozen, plot, read_paths, table, to_json

    if namespace.top < 1:
        raise UserError(f"--top: must be at least 1, got {namespace.top}")
    check_result_file(namespace.out, "neurons.json")
    opened = open_model(namespace.source)
    view = frozen(opened.model, {name: weight.detach() for name, weight in opened.model.named_parameters()})
    paths = opened.source / ROUTING_FOLDER
    chosen = (paths / PATHS_FILE).is_file()  # compact routing has a folder before its first choice too
    path = read_paths(paths)["path"] if chosen else None
    tokenizer = load_tokenizer(opened.tokenizer)
    found = explain(view, tokenizer, namespace.prompt, namespace.answer, namespace.quadrature, path)
    result = to_json(found, namespace.top)
    print(visible(table(result)))
    if namespace.out:
        write_atomically(namespace.out, json.dumps(result, indent=1) + "\n")
        plot(found, namespace.out.with_suffix(".png"))
        print(f"{namespace.out} and {namespace.out.with_suffix('.png')} written")
    return 0
