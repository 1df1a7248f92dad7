"""Measure what each strategy of Figure 3 keeps of a corpus: prepare it, score its mentions, count.

python tools/bench/strategies.py --source trex_linked.jsonl.gz --wikidata5m wikidata5m/ --tokenizer bert-base-uncased/ \
    --model BACKBONE --work WORK [--scope all] [--out docs/benchmarks/strategies.json]

Writes JSON and a plot and prints a table. It may be stopped at any time; the same command continues with the shards
that are not scored yet.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from trelm_ds.config import SelectionConfig
from trelm_ds.corpus import PrepareOptions, prepare
from trelm_ds.importance import (
    ScoreOptions,
    ScoreResult,
    compare_strategies,
    format_strategies,
    plot_strategies,
    score_dataset,
)
from trelm_ds.model import load_config

ROOT = Path(__file__).resolve().parents[2]
QUANTILES = (0.1, 0.25, 0.5, 0.75, 1.0)
SHARD_MB = 1  # many small shards, so that little is lost if scoring is stopped


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="see `trelm prepare`")
    parser.add_argument("--wikidata5m", type=Path, required=True, help="see `trelm prepare`")
    parser.add_argument("--tokenizer", required=True, help="see `trelm prepare`")
    parser.add_argument("--model", type=Path, required=True, help="see `trelm importance`")
    parser.add_argument("--scope", choices=("long_tail", "all"), default="long_tail", help="see `trelm importance`")
    parser.add_argument("--work", type=Path, required=True, help="folder for the dataset, kept between runs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "strategies.json")
    return parser.parse_args()


def speed(result: ScoreResult) -> dict[str, Any] | None:
    """Compute how fast this call scored; None if an earlier call had scored everything."""
    if not result.counts:
        return None
    scored = result.counts["scored"]
    return {
        "mentions": scored,
        "seconds": round(result.seconds, 1),
        "mentions_per_s": round(scored / result.seconds, 1),
    }


def device() -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores, {platform.machine()}, {gpu}; {torch.get_num_threads()} thread(s) used"


def main() -> None:
    options = arguments()
    dataset = options.work / "dataset"
    manifest, _ = prepare(
        PrepareOptions(options.source, options.wikidata5m, options.tokenizer, dataset, shard_mb=SHARD_MB)
    )
    scored = score_dataset(ScoreOptions(dataset, options.model, scope=options.scope))
    by_quantile = {quantile: compare_strategies(dataset, SelectionConfig(quantile=quantile)) for quantile in QUANTILES}
    shown = by_quantile[SelectionConfig().quantile]
    content = {
        "device": device(),
        "versions": {name: version(name) for name in ("torch", "numpy", "transformers", "tokenizers")},
        "date": datetime.date.today().isoformat(),
        "source": options.source.name,
        "fingerprint": manifest.fingerprint,
        "backbone": dataclasses.asdict(load_config(options.model)),
        "speed": speed(scored),
        "quantiles": {str(quantile): result for quantile, result in by_quantile.items()},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    plot_strategies(shown, options.out.with_suffix(".png"))
    print(format_strategies(shown))
    print(f"{options.out} and {options.out.with_suffix('.png')} written")


if __name__ == "__main__":
    main()
