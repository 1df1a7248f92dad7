"""`trelm compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

from trelm_ds.commands.result_file import check_result_file
from trelm_ds.errors import UserError

_SUFFIXES = (".md", ".html")


def add_compare(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "compare",
        help="results of several models side by side, with significance",
        description="Read results of `trelm evaluate` and make one table: all tasks, all models, mean and spread, the "
        "best in bold, and by paired bootstrap whether a difference to the reference is more than chance.",
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="[NAME=]MODEL|RESULT",
        help="result file; folder with such files; or folder of a model, whose results lie in it or beside it; NAME is "
        "how the table calls the model, and puts results of one name into one column",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="file for the page as well: .md or .html")
    parser.add_argument(
        "--reference", metavar="NAME", help="model that the others are compared with (default: the first)"
    )
    parser.add_argument("--all", action="store_true", help="all metrics, splits and groups, not the main numbers alone")
    parser.add_argument(
        "--resamples", type=int, default=5000, metavar="N", help="resamples of the bootstrap (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of its draws (default: %(default)s)")
    parser.set_defaults(action=_compare)


def _compare(namespace: argparse.Namespace) -> int:
    out: Path | None = namespace.out
    if namespace.resamples < 100:
        raise UserError(f"--resamples: must be at least 100, got {namespace.resamples}")
    if namespace.seed < 0:
        raise UserError(f"--seed: must not be negative, got {namespace.seed}")
    if out is not None and out.suffix not in _SUFFIXES:
        raise UserError(f"--out: {out} must end in {' or '.join(_SUFFIXES)}")
    check_result_file(out, "comparison.html")
    from trelm_ds.evaluation import compare_models, find_models, to_html, to_markdown
    from trelm_ds.files import write_atomically

    models = find_models(namespace.sources)
    table = compare_models(models, namespace.reference, namespace.resamples, namespace.seed, namespace.all)
    print(to_markdown(table))
    if out is not None:
        write_atomically(out, to_html(table) if out.suffix == ".html" else to_markdown(table))
        print(f"{out} written")
    return 0
