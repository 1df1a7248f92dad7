"""`trelm evaluate typing | relation | glue`: fine-tune a model for a task and score it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trelm_ds import log
from trelm_ds.commands.result_file import check_result_file
from trelm_ds.errors import CommonError, UserError
from trelm_ds.visible import visible

if TYPE_CHECKING:
    from trelm_ds.evaluation import FinetuneOptions, Task, Workers


@dataclass(frozen=True)
class Defaults:
    """Hyper-parameters of a task where the command line says nothing: those of ERNIE and RoBERTa."""

    epochs: int
    batch_size: int
    patience: int = 3
    lr: float = 2e-5


_TYPING, _RELATION = Defaults(epochs=10, batch_size=16), Defaults(epochs=5, batch_size=32)
_GLUE = Defaults(epochs=10, batch_size=32)
_LARGE_GLUE = Defaults(epochs=3, batch_size=32)  # the four with more than 60,000 examples
_LARGE = ("mnli", "qqp", "qnli", "sst-2")


def add_finetuning(tasks: argparse._SubParsersAction) -> None:
    """Add the sub-commands to those of `trelm evaluate`."""
    typing = tasks.add_parser(
        "typing", help="entity typing (Open Entity in ERNIE's JSON format): loose micro and macro F1"
    )
    relation = tasks.add_parser("relation", help="relation extraction (TACRED or FewRel): micro and macro F1")
    glue = tasks.add_parser("glue", help="GLUE's eight tasks on dev, from the TSV files as published")
    data = "folder with train.json, dev.json and test.json (.gz will do)"
    for parser, folder, defaults in (
        (typing, data, _shown(_TYPING)),
        (relation, data, _shown(_RELATION)),
        (
            glue,
            "GLUE's folder, with CoLA/, MRPC/ ...",
            f"{_shown(_GLUE)}; {' '.join(_LARGE)}: {_LARGE_GLUE.epochs} epochs",
        ),
    ):
        _add_common(parser, folder, defaults)
    relation.add_argument(
        "--no-relation",
        metavar="NAME",
        help="the label that is no relation (default: no_relation or NA where it occurs)",
    )
    glue.add_argument(
        "--tasks", nargs="+", metavar="TASK", default=[], help="some of its tasks (default: all in --data)"
    )
    typing.set_defaults(action=_typing)
    relation.set_defaults(action=_relation)
    glue.set_defaults(action=_glue)


def _shown(of: Defaults) -> str:
    return f"default: {of.epochs} epochs, {of.batch_size} examples a step, learning rate {of.lr:g}"


def _add_common(parser: argparse.ArgumentParser, folder: str, defaults: str) -> None:
    parser.description = (
        f"Fine-tune a model with several seeds and score it; {defaults}. Started by torchrun, ranks share the work."
    )
    add = parser.add_argument
    add(
        "--model",
        type=Path,
        required=True,
        help="Hugging Face folder of a BERT or RoBERTa, with an MLM head or without",
    )
    add("--data", type=Path, required=True, help=folder)
    add(
        "--out",
        type=Path,
        required=True,
        help="JSON file for the result; predictions, plot and finished runs beside it",
    )
    add("--seeds", type=int, default=5, metavar="N", help="runs with seeds 1 to N (default: %(default)s)")
    add("--lr", type=float, nargs="+", metavar="LR", help="learning rate; of several the best on dev is reported")
    add("--epochs", type=int, metavar="N", help="passes over the training split at most")
    add("--batch-size", type=int, metavar="N", help="examples of an optimizer step, over all ranks")
    add(
        "--early-stopping",
        type=int,
        metavar="N",
        help="end after N epochs without a better dev score and score the best epoch; 0: score the last (default: 3)",
    )
    add(
        "--warmup",
        type=float,
        default=0.06,
        help="share of the steps with a rising learning rate (default: %(default)s)",
    )
    add("--weight-decay", type=float, default=0.01, help="of matrices (default: %(default)s)")
    add("--max-length", type=int, metavar="N", help="longest text or pair in tokens (default: what the model can read)")
    add("--truncate", action="store_true", help="cut longer ones, around mentions, instead of refusing them")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the matrix products (default: %(default)s)")
    add("--device", default="auto", help="auto (a GPU if there is one), cpu or cuda; ranks take the one of theirs")
    add(
        "--tracking-uri", metavar="URI", help="MLflow store (default: MLFLOW_TRACKING_URI, else mlflow.db beside --out)"
    )
    add("--experiment", default="trelm-evaluation", metavar="NAME", help="MLflow experiment (default: %(default)s)")
    add("--no-tracking", action="store_true", help="tell MLflow nothing")


def _typing(namespace: argparse.Namespace) -> int:
    from trelm_ds.evaluation import read_typing

    return _run(namespace, "typing", {"typing": partial(read_typing, namespace.data)}, {"typing": _TYPING})


def _relation(namespace: argparse.Namespace) -> int:
    from trelm_ds.evaluation import read_relation

    read = partial(read_relation, namespace.data, namespace.no_relation)
    return _run(namespace, "relation", {"relation": read}, {"relation": _RELATION})


def _glue(namespace: argparse.Namespace) -> int:
    from trelm_ds.evaluation import glue_tasks, read_glue

    names = glue_tasks(namespace.data, [name.lower() for name in namespace.tasks])
    tasks: dict[str, Callable[[], Task]] = {name: partial(read_glue, namespace.data, name) for name in names}
    return _run(namespace, "glue", tasks, {name: _LARGE_GLUE if name in _LARGE else _GLUE for name in names})


def _run(
    namespace: argparse.Namespace, name: str, tasks: dict[str, Callable[[], Task]], defaults: dict[str, Defaults]
) -> int:
    from trelm_ds.evaluation import Evaluation, evaluate, format_result, plot_result

    check_result_file(namespace.out, f"{name}.json")
    if namespace.seeds < 1:
        raise UserError(f"--seeds: must be at least 1, got {namespace.seeds}")
    if wrong := [lr for lr in namespace.lr or [] if not 0 < lr < 1]:
        raise UserError(f"--lr: must be greater than 0 and less than 1, got {wrong[0]:g}")
    asked = Evaluation(
        name=name,
        model=namespace.model,
        data=namespace.data,
        out=namespace.out,
        tasks=tasks,
        options={task: _options(namespace, of) for task, of in defaults.items()},
        lrs=list(dict.fromkeys(namespace.lr or [next(iter(defaults.values())).lr])),
        seeds=range(1, namespace.seeds + 1),
        tracking_uri=namespace.tracking_uri,
        experiment=namespace.experiment,
        tracks=not namespace.no_tracking,
    )
    try:
        result = _with_workers(namespace.device, lambda workers: evaluate(asked, workers))
    except KeyboardInterrupt:
        log.info(f"stopped; finished runs are kept in {asked.folder}, and the same command goes on with them")
        raise
    if result is not None:
        print(visible(format_result(result)))
        picture = namespace.out.with_suffix(".png")
        plot_result(result, picture)
        print(f"{namespace.out} and {picture} written")
    return 0


def _options(namespace: argparse.Namespace, of: Defaults) -> FinetuneOptions:
    from trelm_ds.evaluation import FinetuneOptions

    def given(name: str, default: int) -> int:
        value: int | None = getattr(namespace, name)
        return default if value is None else value

    return FinetuneOptions(
        epochs=given("epochs", of.epochs),
        batch_size=given("batch_size", of.batch_size),
        patience=given("early_stopping", of.patience),
        warmup=namespace.warmup,
        weight_decay=namespace.weight_decay,
        precision=namespace.precision,
        max_length=namespace.max_length,
        truncate=namespace.truncate,
    )


def _with_workers(device: str, call: Callable[[Workers], dict[str, Any]]) -> dict[str, Any] | None:
    """Run `call` in this process, or with the other ranks of a launcher; return rank 0's result, None on the others."""
    from trelm_ds.distributed import connect, disconnect
    from trelm_ds.evaluation import Alone, Together, find_device
    from trelm_ds.launched import is_launched

    if not is_launched():
        return call(Alone(find_device(device)))
    if device != "auto":
        raise UserError("--device: ranks of a launcher take the device of theirs; leave it out")
    ranks = connect()
    try:
        result = call(Together(ranks))
        return result if ranks.rank == 0 else None
    except CommonError as error:
        ranks.report(error)
        raise
    finally:
        disconnect()
