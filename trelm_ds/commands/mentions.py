"""`trelm importance` and `trelm strategies`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from trelm_ds.commands.result_file import check_result_file
from trelm_ds.errors import UserError
from trelm_ds.files import write_atomically
from trelm_ds.visible import visible


def add_importance(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "importance",
        help="score how much each sentence depends on its mentions",
        description="Store the cosine of Eq. 1 for every mention in DATASET/importance. It may be stopped at any time; "
        "the same command continues. Parts may run in parallel.",
    )
    parser.add_argument("dataset", type=Path, metavar="DATASET")
    parser.add_argument(
        "--model", type=Path, required=True, help="Hugging Face folder of the backbone, with or without MLM head"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")
    parser.add_argument(
        "--batch-tokens", type=int, help="most tokens in a forward pass (default: 2048 on a CPU, 65536 on a GPU)"
    )
    parser.add_argument(
        "--scope",
        choices=("long_tail", "all"),
        default="long_tail",
        help="score mentions of long-tail entities with a triple, or all mentions, which the strategies high_frequency "
        "and all need (default: %(default)s)",
    )
    parser.add_argument(
        "--entity-threshold", type=int, help="an entity with fewer mentions is long-tail (default: the corpus mean)"
    )
    parser.add_argument("--part", default="1/1", metavar="i/n", help="score every n-th shard, starting with the i-th")
    parser.set_defaults(action=_importance)


def _importance(namespace: argparse.Namespace) -> int:
    from trelm_ds.importance import Part, ScoreOptions, score_dataset

    names = ("dataset", "model", "device", "batch_tokens", "scope", "entity_threshold")
    options = {name: getattr(namespace, name) for name in names}
    result = score_dataset(ScoreOptions(**options, part=Part.parse(namespace.part)))
    for name, value in result.counts.items():
        print(f"{value:>12,}  {name}")
    if result.counts:
        scored = result.counts["scored"]
        print(f"{scored:>12,}  scored in {result.seconds:.0f} s: {scored / max(result.seconds, 1e-9):.0f} mentions/s")
    state = "complete" if result.complete else "shards of other parts are still missing"
    print(f"{result.folder}: {result.shards} shard(s), {result.skipped} scored before; {state}")
    return 0


def add_strategies(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("strategies", help="count the mentions that each strategy of Figure 3 keeps")
    parser.add_argument("dataset", type=Path, metavar="DATASET")
    parser.add_argument(
        "--entity-threshold", type=int, help="an entity with fewer mentions is long-tail (default: the corpus mean)"
    )
    parser.add_argument(
        "--quantile", type=float, default=0.5, help="share of candidates that count as important (default: %(default)s)"
    )
    parser.add_argument(
        "--max-per-sequence", type=int, default=8, help="most mentions per sequence (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the numbers; a bar chart is saved next to it")
    parser.set_defaults(action=_strategies)


def _strategies(namespace: argparse.Namespace) -> int:
    from trelm_ds.config import Config, SelectionConfig
    from trelm_ds.config_rules import problems
    from trelm_ds.importance import compare_strategies, format_strategies, plot_strategies

    check_result_file(namespace.out, "strategies.json")
    names = ("entity_threshold", "quantile", "max_per_sequence")
    selection = SelectionConfig(**{name: getattr(namespace, name) for name in names})
    for setting, problem in problems(Config(selection=selection)):
        raise UserError(f"--{setting.removeprefix('selection.').replace('_', '-')}: {problem}")
    result = compare_strategies(namespace.dataset, selection)
    print(visible(format_strategies(result)))
    if namespace.out:
        picture = namespace.out.with_suffix(".png")
        write_atomically(namespace.out, json.dumps(result, indent=1) + "\n")
        plot_strategies(result, picture)
        print(f"{namespace.out} and {picture} written")
    return 0
