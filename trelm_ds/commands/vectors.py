"""`trelm vectors train`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from trelm_ds.errors import CommonError, UserError

if TYPE_CHECKING:
    from trelm_ds.kg_embedding import Trained, VectorOptions

_METHODS = ("transe", "distmult", "rotate")


def add_vectors(commands: argparse._SubParsersAction) -> None:
    vectors = commands.add_parser("vectors", help="train vectors of entities and relations on a dataset's graph")
    actions = vectors.add_subparsers(dest="vectors_command", metavar="COMMAND", required=True)
    parser = actions.add_parser(
        "train",
        help="train TransE, DistMult or RotatE",
        description="Train vectors of a dataset's entities and relations on its graph. With --method transe, the file "
        "serves `trelm pretrain --injection.source transe --injection.file FILE`. Started by torchrun, ranks share "
        "rows and work. It may be stopped at any time; the same command continues.",
    )
    parser.add_argument("dataset", type=Path, metavar="DATASET")
    _add_files(parser.add_argument_group("output"))
    _add_model(parser.add_argument_group("model and training"))
    _add_evaluation(parser.add_argument_group("held-out triples and evaluation"))
    parser.set_defaults(action=_train)


def _add_files(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--out", type=Path, required=True, metavar="FILE", help=".safetensors file to write")
    group.add_argument("--work", type=Path, help="folder of checkpoints, removed at the end (default: FILE.work)")
    group.add_argument("--metrics", type=Path, metavar="FILE", help="JSON file for metrics, settings and loss")
    group.add_argument(
        "--checkpoint-minutes", type=float, default=10.0, help="between checkpoints (default: %(default)g)"
    )


def _add_model(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--method", choices=_METHODS, default="transe", help="score function (default: %(default)s)")
    add("--dim", type=int, default=256, help="numbers in a vector (default: %(default)s)")
    add("--norm", type=int, choices=(1, 2), default=2, help="of distances; 2 is much faster (default: %(default)s)")
    add("--epochs", type=float, default=30.0, help="passes over the triples (default: %(default)g)")
    add("--batch-size", type=int, default=4096, help="triples of a step, over all ranks (default: %(default)s)")
    add("--chunk-size", type=int, default=256, help="triples that share negatives (default: %(default)s)")
    add("--negatives", type=int, default=256, help="entities that replace head or tail (default: %(default)s)")
    add("--lr", type=float, help="learning rate of row-wise Adagrad (default: the method's)")
    add("--final-lr", type=float, default=0.0, help="share of it at the last step (default: %(default)g)")
    add("--margin", type=float, help="gamma of the loss (default: the method's)")
    add(
        "--temperature",
        type=float,
        default=1.0,
        help="alpha of self-adversarial sampling; 0 weighs all negatives equally (default: %(default)g)",
    )
    add("--regularization", type=float, help="weight of the cubes of all numbers (default: the method's)")
    add("--seed", type=int, default=0, help="(default: %(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="ranks take the one of theirs")


def _add_evaluation(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    for name in ("valid", "test"):
        add(f"--{name}-share", type=float, default=0.0, metavar="SHARE", help="of the triples to hold out")
        add(f"--{name}", type=Path, metavar="FILE", help="or a file of triples, Q1<TAB>P2<TAB>Q3 a line")
    add("--eval-triples", type=int, metavar="N", help="rank at most N (default: all, but 1000 before the end)")
    add("--eval-every", type=float, default=10.0, metavar="EPOCHS", help="0: only at the end (default: %(default)g)")


def _train(namespace: argparse.Namespace) -> int:
    from trelm_ds.kg_embedding import VectorOptions, format_metrics

    names = [item.name for item in dataclasses.fields(VectorOptions) if item.name != "work"]
    work = namespace.work or namespace.out.with_name(f"{namespace.out.name}.work")
    options = VectorOptions(work=work, **{name: getattr(namespace, name) for name in names})
    trained = _with_ranks(namespace.device, options)
    if trained is None or trained.result is None:
        return 0 if trained is None else trained.code
    for name, value in trained.result["counts"].items():
        print(f"{value:>14,}  {name}")
    for name, metrics in trained.result["metrics"].items():
        print(format_metrics(name, metrics))
    print(f"{namespace.out}: {'written' if trained.made else 'already made by this command'}")
    return 0


def _with_ranks(device: str, options: VectorOptions) -> Trained | None:
    """Train in this process, or with the other ranks of a launcher, of which only rank 0 returns a result."""
    from trelm_ds.distributed import OneProcess, connect, disconnect
    from trelm_ds.evaluation import find_device
    from trelm_ds.kg_embedding import train_vectors
    from trelm_ds.launched import is_launched

    if not is_launched():
        return train_vectors(options, OneProcess(find_device(device)))
    if device != "auto":
        raise UserError("--device: ranks of a launcher take the device of theirs; leave it out")
    ranks = connect()
    try:
        trained = train_vectors(options, ranks)
    except CommonError as error:
        ranks.report(error)
        disconnect()
        raise
    disconnect()  # not after a failure of one rank: it would wait for the others
    return trained if ranks.rank == 0 or trained.code else None
