"""Start the real command in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_OF_A_PROCESS_GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def environment() -> dict[str, str]:
    # The fixture `one_rank` leaves its process group's variables behind; the command is to make a group of its own.
    return {name: value for name, value in os.environ.items() if name not in _OF_A_PROCESS_GROUP} | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }


def trelm(*arguments: object, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trelm_ds", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment() | changes, timeout=300)


def torchrun(ranks: int, *arguments: object) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*launcher, "-m", "trelm_ds", *map(str, arguments)]
