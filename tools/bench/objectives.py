"""Measure what TRELM's objectives cost: the step time with each part, relative to plain MLM in the same run.

Knowledge routing is off; tools/bench/step.py measures what it saves.

python tools/bench/objectives.py --data DATASET [--config trelm_ds/recipes/sizes/base.yaml] [--rounds 5] \
    [--out docs/benchmarks/objectives.json] [--trainer.global_batch_size 32 ...]

All models are in one process and take turns, step by step, so that other load on the machine affects all of them alike.
Reading is timed separately, because a run with loader.workers reads during the step.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser

from trelm_ds.config import Config, SelectionConfig
from trelm_ds.distributed import connect, disconnect
from trelm_ds.settings import add_settings, parse
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run
from trelm_ds.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
WARM_UP = 2  # first steps of each, not counted


def variants(config: Config) -> dict[str, Config]:
    """Build the configs to compare, by what they add to plain MLM."""
    config = replace(config, routing=replace(config.routing, enabled=False))
    off = replace(config.memory, enabled=False)
    nothing = replace(config.cka, decoder="none")
    chosen = SelectionConfig(importance="none")
    mlm = replace(config, selection=SelectionConfig(strategy="none"), memory=off, cka=nothing)
    injection = replace(config, selection=chosen, memory=off, cka=nothing)
    bank = replace(injection, memory=config.memory)
    dkplm = replace(
        injection,
        injection=replace(config.injection, probability=1.0),
        cka=replace(
            config.cka, decoder="product", triple="same", mentions="chosen", facts_per_mention=1, negatives=200
        ),
    )
    return {
        "mlm": mlm,
        "mlm + injection": injection,
        "mlm + injection + memory": bank,
        "trelm": replace(bank, cka=config.cka),
        "dkplm": dkplm,
    }


class Timed:
    """A trainer whose steps and reading are timed separately."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self._loader = trainer, trainer.reader.loader
        trainer.reader.loader = self  # type: ignore[assignment]  # the trainer reads through this object
        self.steps: list[float] = []
        self.reading: list[float] = []
        self.tokens: list[int] = []
        self.sequence_tokens: list[int] = []  # without queries

    def __next__(self) -> Any:
        begun = time.perf_counter()
        read = next(self._loader)
        self.reading.append(time.perf_counter() - begun)
        self.tokens.append(sum(len(batch.input_ids) for batch in read.micro_batches))
        self.sequence_tokens.append(sum(int(batch.cu_seqlens[batch.n_sequences]) for batch in read.micro_batches))
        return read

    def step(self) -> None:
        """Take and time one optimizer step."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        begun = time.perf_counter()
        self._trainer.train_step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.steps.append(time.perf_counter() - begun - self.reading[-1])


def take_turns(configs: dict[str, Config], data: Path, rounds: int) -> dict[str, Timed]:
    """Train every config in this process, step by step in turns, so that other load affects all of them alike."""
    ranks = connect()
    try:
        with tempfile.TemporaryDirectory() as folder, StopSignals() as signals:
            timed = {}
            for number, (name, config) in enumerate(configs.items()):
                trainer = build_run(config, str(data), Path(folder) / str(number), ranks, signals)
                trainer.engine.train()
                timed[name] = Timed(trainer)
            for _ in range(WARM_UP + rounds):
                for one in timed.values():
                    one.step()
    finally:
        disconnect()
    return timed


def measure(config: Config, data: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Measure each variant's median seconds per step and for reading, and its tokens per step."""
    timed = take_turns(variants(config), data, rounds)
    return {
        name: {
            "step_s": statistics.median(one.steps[WARM_UP:]),
            "reading_s": statistics.median(one.reading[WARM_UP:]),
            "tokens": statistics.mean(one.tokens[WARM_UP:]),
        }
        for name, one in timed.items()
    }


def report(config: Config, measured: dict[str, dict[str, float]], rounds: int) -> dict[str, Any]:
    plain = measured["mlm"]
    model = config.model
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores, no GPU",
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "deepspeed")},
        "date": datetime.date.today().isoformat(),
        "model": f"{model.num_hidden_layers} layers x {model.hidden_size}",
        "precision": config.trainer.precision,
        "sequences_per_step": config.trainer.global_batch_size,
        "rounds": rounds,
        "objectives": {
            name: {
                "step_ms": round(1000 * one["step_s"], 2),
                "relative_to_mlm": round(one["step_s"] / plain["step_s"], 3),
                "tokens_relative_to_mlm": round(one["tokens"] / plain["tokens"], 3),
                "reading_ms": round(1000 * one["reading_s"], 2),
            }
            for name, one in measured.items()
        },
    }


def table(result: dict[str, Any]) -> str:
    rows = ["| objective | step, ms | relative to mlm | tokens, relative | reading, ms |", "|---" * 5 + "|"]
    for name, one in result["objectives"].items():
        figures = one["step_ms"], one["relative_to_mlm"], one["tokens_relative_to_mlm"], one["reading_ms"]
        rows.append(f"| {name} | " + " | ".join(map(str, figures)) + " |")
    return "\n".join(rows)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    options.add_argument("--data", type=Path, required=True, help="dataset of `trelm prepare`")
    options.add_argument("--rounds", type=int, default=5, help="steps to measure per objective")
    options.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "objectives.json")
    own, settings = options.parse_known_args()
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, print_config=None)
    add_settings(parser)
    always = ["--tracking.enabled", "false", "--loader.workers", "0"]
    config = parse(parser, [*settings, *always])[0]
    result = report(config, measure(config, own.data, own.rounds), own.rounds)
    own.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
