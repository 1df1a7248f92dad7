"""`trelm evaluate` and `trelm neurons`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from trelm_ds.commands.result_file import check_result_file
from trelm_ds.commands.tasks import add_tasks
from trelm_ds.errors import UserError
from trelm_ds.files import write_atomically
from trelm_ds.visible import visible


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("evaluate", help="score a model")
    tasks = parser.add_subparsers(dest="task", metavar="TASK", required=True)
    lama = tasks.add_parser("lama", help="LAMA cloze probes: P@1 per relation and macro, with the majority baseline")
    lama.add_argument("--model", type=Path, required=True, help="Hugging Face folder of a masked language model")
    lama.add_argument("--data", type=Path, required=True, help="folder with relations.jsonl and TREx/P*.jsonl[.gz]")
    lama.add_argument("--out", type=Path, help="JSON file for the result; a bar chart is saved next to it")
    lama.add_argument(
        "--vocab", type=Path, help="candidate words, one per line (default: DATA/common_vocab*.txt, else all)"
    )
    lama.add_argument("--batch-size", type=int, default=64, help="prompts per forward pass (default: %(default)s)")
    lama.set_defaults(action=_evaluate_lama)
    add_tasks(tasks)


def _evaluate_lama(namespace: argparse.Namespace) -> int:
    from trelm_ds.evaluation import evaluate_lama, format_table, plot, write_result

    if namespace.batch_size < 1:
        raise UserError(f"--batch-size: must be at least 1, got {namespace.batch_size}")
    check_result_file(namespace.out, "lama.json")
    result = evaluate_lama(namespace.model, namespace.data, batch_size=namespace.batch_size, vocabulary=namespace.vocab)
    print(visible(format_table(result)))
    if namespace.out:
        write_result(result, namespace.out)
        picture = namespace.out.with_suffix(".png")
        plot(result, picture)
        print(f"{namespace.out} and {picture} written")
    return 0


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
    from trelm_ds.routing import explain, frozen, plot, read_paths, table, to_json
    from trelm_ds.training import ROUTING_FOLDER

    if namespace.top < 1:
        raise UserError(f"--top: must be at least 1, got {namespace.top}")
    check_result_file(namespace.out, "neurons.json")
    opened = open_model(namespace.source)
    view = frozen(opened.model, {name: weight.detach() for name, weight in opened.model.named_parameters()})
    paths = opened.source / ROUTING_FOLDER
    path = read_paths(paths)["path"] if paths.is_dir() else None
    tokenizer = load_tokenizer(opened.tokenizer)
    found = explain(view, tokenizer, namespace.prompt, namespace.answer, namespace.quadrature, path)
    result = to_json(found, namespace.top)
    print(visible(table(result)))
    if namespace.out:
        write_atomically(namespace.out, json.dumps(result, indent=1) + "\n")
        plot(found, namespace.out.with_suffix(".png"))
        print(f"{namespace.out} and {namespace.out.with_suffix('.png')} written")
    return 0
