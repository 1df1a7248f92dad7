"""Plans of made-up numbers, and programs that pretend to train."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from trelm_ds.planning.choices import Choice
from trelm_ds.planning.hardware import CPU, GIB, Device
from trelm_ds.planning.memory import Memory
from trelm_ds.planning.plan import Machine, Plan, Planned
from trelm_ds.planning.step_time import StepTime

DEVICE = Device(CPU, GIB, {"fp32": 1e9, "bf16": 1e9}, 1e9, 1e9, 1e9)
NODE = Machine(DEVICE, 1, 1)  # half of its GiB is for tensors


def planned(choice: Choice, tokens_per_s: float, gib: float = 0.1, problem: str = "", of_step: int = 2) -> Planned:
    """A row of a plan, with so many micro-batches in a step."""
    memory = Memory(int(gib * GIB), 0, 0, 0, 0, 0, 0, 0, 0, 0)
    return Planned(choice, problem, memory, of_step, StepTime(1.0, 0.0, 0.0, 0.0), tokens_per_s)


def choice(stage: int, tokens: int, recomputed: bool = False) -> Choice:
    return Choice(stage, False, 1, tokens, recomputed)


def plan_of(*rows: Planned) -> Plan:
    return Plan(NODE, list(rows), 1000.0, [])


# Writes log points into RUN as training does: a step takes a tenth of a second and has 100 tokens.
_TRAINING = """
import json, pathlib, sys, time
run, steps = pathlib.Path(sys.argv[1]), int(sys.argv[2])
run.mkdir(parents=True)
with (run / "metrics.jsonl").open("a") as metrics:
    for step in range(1, steps + 1):
        point = {"step": step, "loss": 1.0, "accuracy": 0.5, "lr": 0.1, "peak_resident_gb": 0.5}
        point |= {"sequences_per_s": 40.0, "sequence_tokens_per_s": 1000.0}
        print(json.dumps(point), file=metrics, flush=True)
"""


def training(run: Path, steps: int, then: str = "") -> list[str]:
    """Return a command that takes some steps at once, and then does what is said, in Python."""
    return [sys.executable, "-I", "-c", f"{_TRAINING}\n{then}", str(run), str(steps)]


def points(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
