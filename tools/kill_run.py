"""Kill a training run again and again, restart it, and compare the result with an undisturbed run.

python tools/kill_run.py --data DATASET --work WORK [--points | --kills 60] [--who one|all|both] [--ranks 2] \
    [--config tools/kill_run.yaml] [--seed 0] [--out docs/benchmarks/kills.json] [--trainer.max_steps 200 ...]

--points kills once at every named point of trelm_ds/faults.py; --kills at points, passages and ranks drawn by the seed.
In the end weights, optimizer, memory bank, vectors and paths (by the hashes of all files of the last checkpoint),
reading position, guard and every logged number of every step must be equal, bit for bit. Exit code 1 if they are not.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import yaml

from trelm_ds.faults import POINTS
from trelm_ds.run_folder import TIMED

ROOT = Path(__file__).resolve().parents[1]
RANK_0_ALONE = ("log-written", "commit-", "prune-")


Launch = Callable[[int, list[str], str, TextIO], int]


def torchrun(ranks: int, arguments: list[str], kill_at: str, log: TextIO) -> int:
    """Run `trelm` with these arguments on `ranks` ranks, to its end or its death; return the exit code."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    variables = os.environ | {"TRELM_KILL_AT": kill_at, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [*launcher, "-m", "trelm_ds", *arguments]
    return subprocess.run(command, stdout=log, stderr=log, env=variables, timeout=900).returncode


class Run:
    """A training run that can be started again and again."""

    def __init__(self, options: argparse.Namespace, settings: list[str], name: str, launch: Launch) -> None:
        self.folder, self._ranks, self._launch = options.work / name, options.ranks, launch
        self._log = options.work / f"{name}.log"
        place = ["--data", str(options.data), "--out", str(self.folder)]
        self._arguments = ["pretrain", "--config", str(options.config), *place, *settings]

    def start(self, kill_at: str = "") -> bool:
        """Run until the run ends or is killed; return whether it ended by itself, with exit code 0."""
        with self._log.open("a") as log:
            log.write(f"--- {kill_at or 'to the end'}\n")
            log.flush()
            return self._launch(self._ranks, self._arguments, kill_at, log) == 0

    def committed(self) -> int:
        """Return the newest committed step, 0 if there is none."""
        steps = [int(path.parent.name[5:]) for path in self.folder.glob("checkpoints/step-*/manifest.json")]
        return max(steps, default=0)

    def log_points(self) -> list[dict[str, Any]]:
        """Read the log points, without the values that depend on time."""
        path = self.folder / "metrics.jsonl"
        points = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        return [{name: value for name, value in point.items() if not name.startswith(TIMED)} for point in points]

    def end(self) -> dict[str, Any]:
        """Return everything that must be equal in the end."""
        folder = self.folder / "checkpoints" / f"step-{self.committed():08d}"
        manifest = json.loads((folder / "manifest.json").read_text())
        left = [path.name for path in self.folder.glob("checkpoints/.*")]
        same = {name: manifest[name] for name in ("step", "order", "files", "guard", "identity")}
        return same | {"log": self.log_points(), "left over": left}


def plan(options: argparse.Namespace) -> list[str]:
    """Choose TRELM_KILL_AT for every start: each point once, or drawn at random."""
    draw = random.Random(options.seed)
    kills = []
    for number in range(len(POINTS) if options.points else options.kills):
        point = POINTS[number] if options.points else draw.choice(POINTS)
        # Kill late enough that there usually is a checkpoint to resume from; a file is written in many pieces.
        passage = 3 if point.startswith(("step-", "log-")) else 25 if point == "save-mid-file" else 1
        if not options.points:
            passage = draw.randint(1, 2 * passage)
        who = draw.choice(("one", "all")) if options.who == "both" else options.who
        rank = 0 if point.startswith(RANK_0_ALONE) else number % options.ranks
        kills.append(f"{point}:{passage}:{'all' if who == 'all' else rank}")
    return kills


def main(argv: list[str] | None = None, launch: Launch = torchrun) -> dict[str, Any]:
    """Run the comparison and return what was found. Tests replace `launch` by a quicker one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, help="dataset of `trelm prepare`")
    parser.add_argument("--work", type=Path, required=True, help="folder for the two runs; they must not exist yet")
    parser.add_argument("--points", action="store_true", help="kill once at every named point")
    parser.add_argument("--kills", type=int, default=60, help="number of kills at random")
    parser.add_argument(
        "--who", choices=("one", "all", "both"), default="both", help="kill one rank, or all and their launcher"
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", type=Path, default=ROOT / "tools" / "kill_run.yaml")
    parser.add_argument("--out", type=Path, help="JSON")
    options, settings = parser.parse_known_args(argv)
    kills = plan(options)
    every = yaml.safe_load(options.config.read_text())["trainer"]["checkpoint_every"]
    if "--trainer.max_steps" not in settings:  # each start commits at most twice before it is killed
        settings += ["--trainer.max_steps", str(2 * every * (len(kills) + 1))]
    options.work.mkdir(parents=True, exist_ok=True)
    undisturbed, run = (Run(options, settings, name, launch) for name in ("undisturbed", "killed"))
    problems = [f"{one.folder} exists" for one in (undisturbed, run) if one.folder.exists()]
    if problems:
        raise SystemExit("; ".join(problems))
    if not undisturbed.start():
        raise SystemExit(f"the undisturbed run failed, see {options.work}")
    before, repeated, died = 0, 0, Counter[str]()
    for kill in kills:
        if run.start(kill):
            break  # it ended before it reached the point
        now, logged = run.committed(), max((point["step"] for point in run.log_points()), default=0)
        if now < before:
            problems.append(f"{kill}: step {before} was committed, {now} is the newest")
        if logged - now > every:
            problems.append(f"{kill}: step {logged} was reached, {now} is the newest commit")
        repeated += max(0, logged - now)
        died[kill.split(":")[0]] += 1
        before = now
        print(f"{kill}: step {logged} reached, {now} committed", flush=True)
    if not run.start():
        problems.append("the last start failed")
    ours, theirs = run.end(), undisturbed.end()
    problems += [f"{name} differs" for name in theirs if ours[name] != theirs[name]]
    result = {
        "device": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "versions": {name: version(name) for name in ("torch", "deepspeed")},
        "date": datetime.date.today().isoformat(),
        "ranks": options.ranks,
        "seed": options.seed,
        "steps": theirs["step"],
        "kills": sum(died.values()),
        "kills_by_point": dict(sorted(died.items())),
        "steps_repeated": repeated,
        "files_compared": len(theirs["files"]),
        "problems": problems,
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    sys.exit(bool(main()["problems"]))
