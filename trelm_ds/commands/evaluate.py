"""`trelm evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from trelm_ds.commands.finetuning import add_finetuning
from trelm_ds.commands.result_file import check_result_file
from trelm_ds.errors import UserError
from trelm_ds.visible import visible


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("evaluate", help="score a model")
    tasks = parser.add_subparsers(dest="task", metavar="TASK", required=True)
    add_lama(tasks)
    add_finetuning(tasks)


def add_lama(tasks: argparse._SubParsersAction) -> None:
    lama = tasks.add_parser(
        "lama",
        help="LAMA cloze probes: P@1, P@10, MRR with the majority baseline",
        description="Ask a masked language model for the facts of LAMA: T-REx, Google-RE, ConceptNet, SQuAD, as far as "
        "DATA has them, and LAMA-UHN.",
    )
    lama.add_argument("--model", type=Path, required=True, help="Hugging Face folder of a masked language model")
    lama.add_argument(
        "--data",
        type=Path,
        required=True,
        help="LAMA's folder: relations.jsonl with TREx/P*.jsonl[.gz], Google_RE, ConceptNet, Squad, TREx_UHN, "
        "Google_RE_UHN, whichever are there",
    )
    lama.add_argument(
        "--out", type=Path, help="JSON file for the result; predictions and a bar chart are saved next to it"
    )
    candidates = lama.add_argument_group("candidates")
    candidates.add_argument(
        "--vocab", type=Path, help="candidate words, one per line (default: DATA/common_vocab*.txt, else all)"
    )
    candidates.add_argument(
        "--common-with",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders with tokenizers: only words that are one token in each are candidates, and asked for; "
        "without --vocab, all such words",
    )
    candidates.add_argument(
        "--multi-token",
        choices=("skip", "mean-log-prob"),
        default="skip",
        help="objects of several tokens: count them, or score them apart among the relation's own, by the mean "
        "log-probability of their tokens (default: %(default)s)",
    )
    groups = lama.add_argument_group("facts that are also scored apart")
    groups.add_argument(
        "--uhn-model",
        type=Path,
        metavar="DIR",
        help="masked language model for LAMA-UHN's filter of person names (published: bert-base-cased); "
        "without, LAMA-UHN is computed by string match alone, unless its files are in DATA",
    )
    groups.add_argument(
        "--dataset",
        type=Path,
        metavar="DIR",
        help="prepared dataset: subjects that it mentions less often than the mean entity are the long tail; facts "
        "in its graph are trained, those of `prepare --hold-out-facts` held out",
    )
    lama.add_argument("--batch-size", type=int, default=64, help="masks per forward pass (default: %(default)s)")
    lama.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda (default: %(default)s)")
    lama.set_defaults(action=_evaluate_lama)


def _evaluate_lama(namespace: argparse.Namespace) -> int:
    from trelm_ds.evaluation import (
        LamaOptions,
        check_not_another,
        evaluate_lama,
        format_lama,
        plot_lama,
        write_lama,
    )

    if namespace.batch_size < 1:
        raise UserError(f"--batch-size: must be at least 1, got {namespace.batch_size}")
    check_result_file(namespace.out, "lama.json")
    if namespace.out:
        check_not_another(namespace.out, "lama", namespace.model)
    result = evaluate_lama(
        LamaOptions(
            model=namespace.model,
            data=namespace.data,
            vocabulary=namespace.vocab,
            common_with=tuple(namespace.common_with),
            multi_token=namespace.multi_token,
            uhn_model=namespace.uhn_model,
            dataset=namespace.dataset,
            batch_size=namespace.batch_size,
            device=namespace.device,
        )
    )
    print(visible(format_lama(result.summary)))
    if namespace.out:
        write_lama(result, namespace.out)
        picture = namespace.out.with_suffix(".png")
        plot_lama(result.summary, picture)
        print(f"{namespace.out} with its predictions, and {picture} written")
    return 0
