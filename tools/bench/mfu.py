"""Measure tokens per second and model FLOPs utilisation (MFU) on a GPU: base and large; dense, TRELM, routed, compact.

    python tools/bench/mfu.py --data DATASET [--sizes base large] [--steps 20] [--peak TFLOPS] [--out FILE]
        [--trainer.compile true ...]

DATASET: prepared with --max-length 512 and `trelm importance` or without. Valid tokens are counted, padding and the
queries of assessing left out; MFU is the dense model's FLOPs for them (forward and backward, no recomputation) over
what the GPU could do in the time, so that what routing leaves out counts as speed. Without a GPU nothing is measured:
the counts of FLOPs and bytes that a GPU would have are printed, and said to be that.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import statistics
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compact import count, model_bytes
from jsonargparse import ArgumentParser
from objectives import Timed, variants

from trelm_ds.batches import mask_rate
from trelm_ds.config import Config
from trelm_ds.distributed import Ranks, connect, disconnect
from trelm_ds.model import EncoderConfig, Updated, flops_per_token, peak_tflops
from trelm_ds.routing import updated_part
from trelm_ds.settings import add_settings, parse
from trelm_ds.shards import ShardReader
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run

ROOT = Path(__file__).resolve().parents[2]
SIZES = ROOT / "trelm_ds" / "recipes" / "sizes"
WARM_UP = 5  # first steps of each, not counted: kernels are chosen and compiled
ATTENDED, VOCABULARY = 512, 30522  # where no dataset says otherwise


def cases(config: Config) -> dict[str, Config]:
    """Build the configurations to compare."""
    parts = variants(config)
    paths = replace(config.routing, enabled=True)
    return {
        "dense": parts["mlm"],
        "trelm": parts["trelm"],
        "routed": replace(config, routing=replace(paths, trainable="all")),
        "ffn_only": replace(config, routing=replace(paths, trainable="ffn_only")),
        "compact": replace(config, routing=replace(paths, trainable="all", compact=True)),
        "compact, ffn_only": replace(config, routing=replace(paths, trainable="ffn_only", compact=True)),
    }


def attended_tokens(lengths: np.ndarray) -> float:
    """Average how many tokens a token attends to: all of its own sequence; `lengths` [n] are theirs."""
    return float(np.square(lengths.astype(np.float64)).sum() / lengths.sum())


def flops_of(config: Config, sizes: EncoderConfig, attended: float) -> float:
    """Count the FLOPs of training on a token, with routing as the configuration has it."""
    updated = updated_part(config.routing, sizes) if config.routing.enabled else Updated()
    return flops_per_token(sizes, attended, mask_rate(config.masking, 0, 1), updated)


def counted(config: Config, vocabulary: int, attended: float) -> dict[str, dict[str, float]]:
    """Count, by case, FLOPs per token, and bytes of weights, gradients and optimizer states on one GPU without ZeRO."""
    sizes, found = EncoderConfig.from_settings(config.model, vocabulary, 0), {}
    for name, case in cases(config).items():
        elements = count(sizes, case.routing)
        found[name] = {
            "gflops_per_token": round(flops_of(case, sizes, attended) / 1e9, 3),
        } | {f"gb_{part}": round(size / 1e9, 3) for part, size in model_bytes(elements).items()}
    return found


def measured(config: Config, data: Path, steps: int, ranks: Ranks) -> dict[str, float]:
    """Run one case; return valid tokens per second and the largest memory in GB."""
    gc.collect()  # the engine of the case before is in reference cycles
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder, StopSignals() as signals:
        trainer = build_run(config, str(data), Path(folder) / "run", ranks, signals)
        trainer.engine.train()
        timed = Timed(trainer)
        for _ in range(WARM_UP + steps):
            timed.step()
        trainer.held.close()
    rates = [tokens / seconds for tokens, seconds in zip(timed.sequence_tokens, timed.steps, strict=True)][WARM_UP:]
    return {
        "tokens_per_s": round(statistics.median(rates)),
        "gb_largest": round(torch.cuda.max_memory_allocated() / 1e9, 1),
    }


def of_size(config: Config, data: Path | None, steps: int, peak: float | None) -> dict[str, dict[str, float]]:
    """Count and, with a GPU, measure all cases of one size."""
    vocabulary, attended = VOCABULARY, float(ATTENDED)
    if data is not None:
        reader = ShardReader(data)
        vocabulary, attended = reader.manifest.vocab_size, attended_tokens(reader.lengths)
    found = counted(config, vocabulary, attended)
    if data is None or not torch.cuda.is_available():
        return found
    ranks = connect()
    try:
        for name, case in cases(config).items():
            found[name] |= measured(case, data, steps, ranks)
            found[name]["relative"] = round(found["dense"]["tokens_per_s"] / found[name]["tokens_per_s"], 3)
            if peak is not None:
                flops = found[name]["tokens_per_s"] * found["dense"]["gflops_per_token"] * 1e9
                found[name]["mfu"] = round(flops / (peak * 1e12), 3)
    finally:
        disconnect()
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    options.add_argument("--data", type=Path, help="dataset of `trelm prepare`; needed on a GPU")
    options.add_argument("--sizes", nargs="+", default=["base", "large"], help="files of recipes/sizes")
    options.add_argument("--steps", type=int, default=20, help="steps to measure of each case")
    options.add_argument("--peak", type=float, help="the GPU's dense bf16 TFLOP/s, where its name is not known")
    options.add_argument("--out", type=Path, help="default: docs/benchmarks/mfu.json, on a GPU")
    own, settings = options.parse_known_args()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    if gpu and own.data is None:
        options.error("--data: a GPU is here to measure with; give a dataset")
    result: dict[str, Any] = {
        "device": gpu or "none: counts of FLOPs and bytes, nothing was measured",
        "versions": {name: version(name) for name in ("torch", "deepspeed", "triton")},
        "date": datetime.date.today().isoformat(),
        "settings": settings,
        "sizes": {},
    }
    for size in own.sizes:
        parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, print_config=None)
        add_settings(parser)
        always = ["--tracking.enabled", "false", "--config", str(SIZES / f"{size}.yaml")]
        config = parse(parser, [*always, *settings])[0]
        peak = own.peak or (peak_tflops(gpu) if gpu else None)
        result["sizes"][size] = of_size(config, own.data, own.steps, peak)
    text = json.dumps(result, indent=1)
    print(text)
    out = own.out or (ROOT / "docs" / "benchmarks" / "mfu.json" if gpu else None)
    if out is not None:
        out.write_text(text + "\n")


if __name__ == "__main__":
    main()
