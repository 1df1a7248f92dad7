"""Compare the step time of this code with that of an earlier commit, in processes that take turns.

    python tools/bench/before_after.py --before COMMIT --data DATASET [--rounds 5] [--steps 10] [--out FILE]
        [--config trelm_ds/recipes/sizes/tiny.yaml ...]

Both run `trelm pretrain`'s own loop on the same dataset and settings, which both must know; compared is the median CPU
time of a step (time on a GPU machine), pair by pair, so that other load on the machine changes little.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WARM_UP = 3  # first steps of each process, not counted

# Runs in either tree, so it uses only what both have.
CHILD = """
import json, sys, tempfile, time
from pathlib import Path
import torch
from jsonargparse import ArgumentParser
from trelm_ds.distributed import connect, disconnect
from trelm_ds.settings import add_settings, parse
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run

data, steps, *settings = sys.argv[1:]
parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, print_config=None)
add_settings(parser)
config = parse(parser, settings)[0]
gpu = torch.cuda.is_available()
now = time.perf_counter if gpu else time.process_time
ranks, seconds = connect(), []
with tempfile.TemporaryDirectory() as folder, StopSignals() as signals:
    trainer = build_run(config, data, Path(folder) / "run", ranks, signals)
    trainer.engine.train()
    for _ in range(int(steps)):
        begun = now()
        trainer.train_step()
        if gpu:
            torch.cuda.synchronize()
        seconds.append(now() - begun)
disconnect()
print("SECONDS", json.dumps(seconds))
"""


def seconds_per_step(tree: Path, data: Path, steps: int, settings: list[str]) -> float:
    """Run some steps of the code in `tree`; return the median seconds of one."""
    environment = os.environ | {"PYTHONPATH": f"{tree}{os.pathsep}{tree / 'kernels'}"}
    always = ["--tracking.enabled", "false", "--loader.workers", "0"]
    command = [sys.executable, "-c", CHILD, str(data), str(WARM_UP + steps), *settings, *always]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{tree}: failed\n{done.stderr[-2000:]}")
    line = next(line for line in done.stdout.splitlines() if line.startswith("SECONDS "))
    return statistics.median(json.loads(line.removeprefix("SECONDS "))[WARM_UP:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--before", required=True, metavar="COMMIT")
    parser.add_argument("--data", type=Path, required=True, help="dataset of `trelm prepare`")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of processes")
    parser.add_argument("--steps", type=int, default=10, help="steps to measure in each process")
    parser.add_argument("--name", default="", help="what to call the case in the file, which keeps the others")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "before_after.json")
    own, settings = parser.parse_known_args()
    pairs: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "before"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", tree, own.before], check=True)
        try:
            for number in range(own.rounds):
                before, after = (seconds_per_step(one, own.data.resolve(), own.steps, settings) for one in (tree, ROOT))
                pairs.append((before, after))
                print(
                    f"pair {number + 1}: {before:.4f} s before, {after:.4f} s after, {after / before:.3f}", flush=True
                )
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", tree], check=True)
    ratios = [after / before for before, after in pairs]
    found: dict[str, Any] = {
        "before": own.before,
        "settings": [text.removeprefix(f"{ROOT}/") for text in settings],
        "before_s": round(statistics.median(before for before, _ in pairs), 4),
        "after_s": round(statistics.median(after for _, after in pairs), 4),
        "after_over_before": round(statistics.median(ratios), 3),
        "pairs": [round(ratio, 3) for ratio in ratios],
    }
    known = json.loads(own.out.read_text())["cases"] if own.out.is_file() else {}
    result = {
        "device": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("torch", "deepspeed")},
        "date": datetime.date.today().isoformat(),
        "cases": known | {own.name or " ".join(settings): found},
    }
    own.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
