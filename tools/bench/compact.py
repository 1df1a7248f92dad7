"""Count what compact routing saves: parameters, bytes exchanged per step, memory per GPU; dense, lazy and compact.

    python tools/bench/compact.py [--sizes base large] [--densities 0.05 0.1 0.25] [--ranks 8] [--out FILE]

Everything is counted from the shapes of the parameters that each mode trains, for bf16 training with fp32 masters and
moments (`tests/tools/test_bench_compact.py` compares the counts with the bytes that a real run hands to
torch.distributed). Times on links are bytes over bandwidth, without latency and without overlap with computation.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from trelm_ds.config import Config, RoutingConfig
from trelm_ds.model import EncoderConfig, MaskedLanguageModel
from trelm_ds.routing import path_size
from trelm_ds.settings import add_settings, parse

ROOT = Path(__file__).resolve().parents[2]
SIZES = ROOT / "trelm_ds" / "recipes" / "sizes"
PAGE = ROOT / "docs" / "routing.md"
VOCABULARY = 30522
HALF, MASTER, MOMENTS, UPDATES = 2, 4, 8, 2  # bytes of an element
NODES, LINKS = (8, 16, 64), (25, 100, 400)  # nodes, Gbit/s of a node's link


class Counts(NamedTuple):
    """Elements of one model in one mode."""

    trained: int
    """that are parameters with gradients"""
    lazy: int
    """of these, updated by lazy AdamW, which counts updates"""
    frozen: int
    """frozen parameters"""
    buffers: int
    """of compact layers, the same on every rank"""


def count(sizes: EncoderConfig, routing: RoutingConfig) -> Counts:
    """Count the elements of a model whose routing is as given; `enabled` false is dense."""
    with torch.device("meta"):
        model = MaskedLanguageModel(sizes)
    neurons = [weight for layer in model.encoder.blocks for weight in _neurons(layer.feed_forward)]
    of_neurons = sum(weight.numel() for weight in neurons)
    everything = sum(weight.numel() for weight in model.parameters())
    if not routing.enabled:
        return Counts(everything, 0, 0, 0)
    others = 0 if routing.trainable == "ffn_only" else everything - of_neurons
    frozen = everything - of_neurons - others
    if not routing.compact:
        return Counts(others + of_neurons, of_neurons, frozen, 0)
    chosen = of_neurons // sizes.intermediate_size * path_size(sizes.intermediate_size, routing.density)
    return Counts(others + chosen, chosen, frozen, of_neurons)


def _neurons(layer: Any) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
    return layer.keys, layer.key_bias, layer.values


def model_bytes(counts: Counts) -> dict[str, float]:
    """Convert counts to bytes of weights, gradients, optimizer states and the table of neurons, unshared."""
    return {
        "weights": HALF * (counts.trained + counts.frozen + counts.buffers),
        "gradients": HALF * counts.trained,
        "optimizer": (MASTER + MOMENTS) * counts.trained + UPDATES * counts.lazy,
        "table": (MASTER + MOMENTS + UPDATES) * counts.buffers,
    }


def costs(counts: Counts, ranks: int) -> dict[str, float]:
    """Convert counts to bytes, in MB: per step and per GPU, under ZeRO 1 and 3."""
    sizes = model_bytes(counts)
    return {
        "trained, millions": counts.trained / 1e6,
        "reduced per step": HALF * counts.trained / 1e6,
        "gathered per step, ZeRO 1": HALF * counts.trained / 1e6,
        "gathered per pass, ZeRO 3": HALF * (counts.trained + counts.frozen) / 1e6,
        "gradients": sizes["gradients"] / 1e6,
        "optimizer per rank": sizes["optimizer"] / ranks / 1e6,
        "weights, ZeRO 1": sizes["weights"] / 1e6,
        "table per rank": sizes["table"] / ranks / 1e6,
    }


def modes(densities: list[float]) -> dict[str, RoutingConfig]:
    """List the modes to compare."""
    made = {"dense": RoutingConfig(enabled=False)}
    for trainable in ("all", "ffn_only"):
        made[f"lazy, {trainable}"] = RoutingConfig(trainable=trainable)  # type: ignore[arg-type]
        for density in densities:
            name = f"compact {density:.0%}, {trainable}"
            made[name] = RoutingConfig(trainable=trainable, density=density, compact=True)  # type: ignore[arg-type]
    return made


def link_times(reduced_mb: float) -> dict[str, float]:
    """Time a step's exchange under ZeRO 1 between nodes, in ms, by number of nodes and Gbit/s of a node's link.

    DeepSpeed reduces by all-reduces, which in a ring send 2 (n - 1) / n of their bytes over every node's link;
    gathering the weights sends (n - 1) / n of them.
    """
    return {
        f"{nodes} nodes, {link} Gbit/s": 3 * reduced_mb * 1e6 * (nodes - 1) / nodes * 8 / (link * 1e9) * 1e3
        for nodes in NODES
        for link in LINKS
    }


def table(result: dict[str, Any]) -> str:
    """Format the result as Markdown."""
    parts = []
    for size, rows in result["sizes"].items():
        keys = [key for key in next(iter(rows.values())) if "nodes" not in key and key != "fewer bytes"]
        header = f"| {size} | {' | '.join(keys)} | bytes exchanged, dense / this |"
        lines = [header, "|---" * (len(keys) + 2) + "|"]
        for name, row in rows.items():
            lines.append(
                f"| {name} | " + " | ".join(f"{row[key]:,.0f}" for key in keys) + f" | {row['fewer bytes']:.1f} |"
            )
        links = [key for key in next(iter(rows.values())) if "nodes" in key]
        lines += ["", f"| {size}: ms of exchange | {' | '.join(links)} |", "|---" * (len(links) + 1) + "|"]
        for name, row in rows.items():
            lines.append(f"| {name} | " + " | ".join(f"{row[key]:,.0f}" for key in links) + " |")
        parts.append("\n".join(lines))
    about = (
        f"MB unless said otherwise; {result['ranks']} ranks share optimizer and table; under ZeRO 3 forward and "
        f"backward are a pass each, or one where weights are kept (`stage3_max_reuse_distance`); {result['date']}."
    )
    return "\n\n".join([*parts, about])


def with_table(page: str, rows: str, mark: str = "compact-table", path: Path = PAGE) -> str:
    """Replace what is between the marks in a page.

    Raises:
        SystemExit: it lacks one of them.
    """
    before, start, rest = page.partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- /{mark} -->")
    if not (start and end):
        raise SystemExit(f"{path}: lacks <!-- {mark} --> or <!-- /{mark} -->; put both back")
    return f"{before}{start}{rows}\n{end}{after}"


def sizes_of(name: str) -> EncoderConfig:
    """Read the sizes of a file in recipes/sizes."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, print_config=None)
    add_settings(parser)
    config: Config = parse(parser, ["--config", str(SIZES / f"{name}.yaml")])[0]
    return EncoderConfig.from_settings(config.model, VOCABULARY, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["base", "large"], help="files of recipes/sizes")
    parser.add_argument("--densities", type=float, nargs="+", default=[0.05, 0.1, 0.25])
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument(
        "--out", type=Path, help="default: docs/benchmarks/compact.json and the table in docs/routing.md"
    )
    options = parser.parse_args()
    result: dict[str, Any] = {"date": datetime.date.today().isoformat(), "ranks": options.ranks, "sizes": {}}
    for size in options.sizes:
        rows: dict[str, dict[str, float]] = {}
        for name, routing in modes(options.densities).items():
            row = costs(count(sizes_of(size), routing), options.ranks)
            dense = rows.get("dense", row)
            exchanged = [one["reduced per step"] + one["gathered per step, ZeRO 1"] for one in (dense, row)]
            rows[name] = row | {"fewer bytes": exchanged[0] / exchanged[1]} | link_times(row["reduced per step"])
        result["sizes"][size] = {
            name: {key: round(value, 2) for key, value in row.items()} for name, row in rows.items()
        }
    out = options.out or ROOT / "docs" / "benchmarks" / "compact.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    if options.out is None:
        PAGE.write_text(with_table(PAGE.read_text(), table(result)))


if __name__ == "__main__":
    main()
