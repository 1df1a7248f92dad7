"""Compare a whole training step with routing, attribution included, with a dense one and with a count of FLOPs.

python tools/bench/step.py --data DATASET [--config trelm_ds/recipes/sizes/base.yaml] [--rounds 5] \
    [--out docs/benchmarks/step.json] [--trainer.global_batch_size 32 ...]

All models are in one process, or with torchrun in as many as it starts, and take turns, step by step. Attribution is
timed in separate steps and spread over routing.refresh_every steps.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from mfu import attended_tokens, flops_of
from objectives import Timed

from trelm_ds.config import Config
from trelm_ds.distributed import connect, disconnect
from trelm_ds.model import EncoderConfig
from trelm_ds.settings import add_settings, parse
from trelm_ds.shards import ShardReader
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run
from trelm_ds.training.routing import Routing

ROOT = Path(__file__).resolve().parents[2]
WARM_UP = 2  # first steps of each, not counted


def variants(config: Config) -> dict[str, Config]:
    """Build the dense config and the routed ones, lazy and compact.

    Paths are refreshed once, during warm-up, with all facts, because a small sample may hold none.
    """
    once = replace(config.routing, enabled=True, refresh_every=1 << 30, start_step=0, sample_fraction=1.0)
    return {
        "dense": replace(config, routing=replace(config.routing, enabled=False)),
        "routed, all": replace(config, routing=replace(once, trainable="all")),
        "routed, ffn_only": replace(config, routing=replace(once, trainable="ffn_only")),
        "compact, all": replace(config, routing=replace(once, trainable="all", compact=True)),
        "compact, ffn_only": replace(config, routing=replace(once, trainable="ffn_only", compact=True)),
        "refreshed in every step": replace(config, routing=replace(once, trainable="all", refresh_every=1)),
    }


def measure(config: Config, data: Path, rounds: int) -> tuple[dict[str, float], float]:
    """Measure the median seconds of a step by variant, and of one refresh of the paths."""
    ranks = connect()
    try:
        with tempfile.TemporaryDirectory() as folder, StopSignals() as signals:
            timed = {}
            for number, (name, variant) in enumerate(variants(config).items()):
                trainer = build_run(variant, str(data), Path(folder) / str(number), ranks, signals)
                trainer.engine.train()
                timed[name] = Timed(trainer)
            refreshing = trainer.component(Routing)  # of the last variant
            refreshes = []
            for _ in range(WARM_UP + rounds):
                for one in timed.values():
                    one.step()
                refreshes.append(refreshing.metrics(1.0)["attribution_time_share"])  # seconds
            if refreshing.paths.neurons is None:
                raise SystemExit("no fact was asked, so there is no path; take more sequences a step")
    finally:
        disconnect()
    steps = {name: statistics.median(one.steps[WARM_UP:]) for name, one in timed.items()}
    return steps, statistics.median(refreshes[WARM_UP:])


def predicted(config: Config, attended: float, vocabulary: int) -> dict[str, float]:
    """Predict the relative step time by the FLOPs of the matrix products: forward, input and weight gradients.

    Args:
        config: model sizes and path density.
        attended: number of tokens that a token attends to.
        vocabulary: vocabulary size V.
    """
    sizes, cases = EncoderConfig.from_settings(config.model, vocabulary, 0), variants(config)
    dense = flops_of(cases["dense"], sizes, attended)
    routed = [name for name in cases if name.startswith(("routed", "compact"))]
    return {name: flops_of(cases[name], sizes, attended) / dense for name in routed}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    options.add_argument("--data", type=Path, required=True, help="dataset of `trelm prepare`")
    options.add_argument("--rounds", type=int, default=5, help="steps to measure per variant")
    options.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "step.json")
    own, settings = options.parse_known_args()
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, print_config=None)
    add_settings(parser)
    always = ["--tracking.enabled", "false", "--loader.workers", "0"]
    config = parse(parser, [*settings, *always])[0]
    steps, whole = measure(config, own.data, own.rounds)
    refresh = config.routing.sample_fraction * whole  # scale from all facts to those of a sample
    reader = ShardReader(own.data)
    model = predicted(config, attended_tokens(reader.lengths), reader.manifest.vocab_size)
    dense, every = steps["dense"], config.routing.refresh_every
    rows: dict[str, dict[str, Any]] = {"dense": {"step_ms": round(1000 * dense, 2), "relative": 1.0}}
    for name in model:
        rows[name] = {
            "step_ms": round(1000 * steps[name], 2),
            "relative": round(steps[name] / dense, 3),
            "relative_with_attribution": round((steps[name] + refresh / every) / dense, 3),
            "predicted_by_flops": round(model[name], 3),
        }
    result = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores, no GPU",
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "ranks": int(os.environ.get("WORLD_SIZE") or 1),
        "versions": {name: version(name) for name in ("torch", "deepspeed", "triton")},
        "date": datetime.date.today().isoformat(),
        "model": f"{config.model.num_hidden_layers} layers x {config.model.hidden_size}",
        "precision": config.trainer.precision,
        "sequences_per_step": config.trainer.global_batch_size,
        "density": config.routing.density,
        "sample_fraction": config.routing.sample_fraction,
        "refresh_every": every,
        "attribution_ms": round(1000 * refresh, 2),
        "attribution_share": round(refresh / every / dense, 4),
        "steps": rows,
    }
    if int(os.environ.get("RANK") or 0):
        return
    own.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"attribution: {result['attribution_ms']} ms, {100 * result['attribution_share']:.2f}% of dense steps")
    print("| step | ms | relative | with attribution | predicted by FLOPs |\n|---|---|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(str(value) for value in [*row.values(), "", ""][:4]) + " |")


if __name__ == "__main__":
    main()
