"""Measure what a checkpoint costs training: written during the next step, and with training waiting for it.

python tools/bench/checkpoint.py --data DATASET [--sizes tiny base] [--rounds 3] \
    [--out docs/benchmarks/checkpoint.json] [--trainer.global_batch_size 4 ...]

Both ways take turns in one process: three steps without a save, then a save, then the step it overlaps with.
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

from trelm_ds.config import Config
from trelm_ds.distributed import Ranks, connect, disconnect
from trelm_ds.run_folder import committed
from trelm_ds.settings import add_settings, parse
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run

ROOT = Path(__file__).resolve().parents[2]
SIZES = ROOT / "trelm_ds" / "recipes" / "sizes"
_PLAIN = 3  # steps without a save in each round


class Contender:
    """A run that saves in one of the two ways."""

    def __init__(self, config: Config, data: Path, run: Path, ranks: Ranks, signals: StopSignals, beside: bool) -> None:
        trainer = replace(config.trainer, async_checkpoints=beside)
        self.trainer = build_run(replace(config, trainer=trainer), str(data), run, ranks, signals)
        self.trainer.engine.train()
        (run / "checkpoints").mkdir(parents=True)
        self.plain: list[float] = []
        self.pauses: list[float] = []
        self.added: list[float] = []

    def _step(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        begun = time.perf_counter()
        self.trainer.train_step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    def round(self) -> None:
        """Time steps without a save, then one save and the step it overlaps with."""
        plain = [self._step() for _ in range(_PLAIN)]
        self.trainer.saver.pause_s = 0.0
        begun = time.perf_counter()
        self.trainer.save()
        saving = time.perf_counter() - begun
        met = self._step()
        self.plain += plain
        self.pauses.append(self.trainer.saver.pause_s)
        self.added.append(saving + met - statistics.median(plain))


def measure(config: Config, data: Path, rounds: int, ranks: Ranks) -> dict[str, Any]:
    """Measure the milliseconds of a step and those a save adds, for both ways."""
    with tempfile.TemporaryDirectory() as folder, StopSignals() as signals:
        ways = {
            name: Contender(config, data, Path(folder) / str(beside), ranks, signals, beside)
            for name, beside in (("training waits", False), ("beside training", True))
        }
        for number in range(rounds + 1):
            for one in ways.values():
                one.round()
                if not number:  # the first round warms up
                    one.plain, one.pauses, one.added = [], [], []
        saved = committed(Path(folder) / "False")[0]
        size = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file())
    return {
        "checkpoint_mb": round(size / 1e6, 1),
        "ways": {
            name: {
                "step_ms": _ms(one.plain),
                "pause_ms": _ms(one.pauses),
                "added_ms": _ms(one.added),
            }
            for name, one in ways.items()
        },
    }


def _ms(seconds: list[float]) -> float:
    return round(1000 * statistics.median(seconds), 1)


def table(result: dict[str, Any]) -> str:
    """Format the result as Markdown."""
    rows = ["| sizes | checkpoint, MB | step, ms | way | pause, ms | time added, ms |", "|---" * 6 + "|"]
    for size, found in result["sizes"].items():
        for way, one in found["ways"].items():
            figures = found["checkpoint_mb"], one["step_ms"], way, one["pause_ms"], one["added_ms"]
            rows.append(f"| {size} | " + " | ".join(map(str, figures)) + " |")
    return "\n".join(rows)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    options.add_argument("--data", type=Path, required=True, help="dataset of `trelm prepare`")
    options.add_argument("--sizes", nargs="+", default=["tiny", "base"], help="files of trelm_ds/recipes/sizes")
    options.add_argument("--rounds", type=int, default=3, help="saves to measure per way")
    options.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "checkpoint.json")
    own, settings = options.parse_known_args()
    ranks, found = connect(), {}
    try:
        for size in own.sizes:
            parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, print_config=None)
            add_settings(parser)
            always = ["--tracking.enabled", "false", "--loader.workers", "0"]
            config = parse(parser, ["--config", str(SIZES / f"{size}.yaml"), *settings, *always])[0]
            found[size] = measure(config, own.data, own.rounds, ranks)
    finally:
        disconnect()
    result = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores, no GPU",
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "deepspeed")},
        "date": datetime.date.today().isoformat(),
        "rounds": own.rounds,
        "settings": settings,
        "sizes": found,
    }
    own.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
