"""Start the command in processes of its own: the real one, or forked from one that is warm (tests/forked.py)."""

from __future__ import annotations

import subprocess
import sys

from tests.forked import ROOT, environment, run

__all__ = ["ROOT", "environment", "forked_ranks", "real_trelm", "torchrun", "trelm"]


def trelm(*arguments: object, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a forked process."""
    return run([*map(str, arguments)], **changes)


def forked_ranks(number: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in `number` forked processes with torchrun's environment."""
    return run([*map(str, arguments)], number)


def real_trelm(*arguments: object, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trelm_ds", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment() | changes, timeout=300)


def torchrun(number: int, *arguments: object) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
    return [*launcher, "-m", "trelm_ds", *map(str, arguments)]
