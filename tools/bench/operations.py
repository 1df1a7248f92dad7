"""List the operations of a step that take the most CPU time, and who calls them: ours, and a plain transformers loop's.

    python tools/bench/operations.py --data DATASET [--lines 30] [--lengths dataset|full] [--trainer.precision fp32 ...]

The steps are those of against_transformers.py. An operation is one that torch dispatches, below autograd; its callers
are the two innermost functions outside torch. Prints milliseconds of this thread's CPU time, calls, operation, callers,
and before each list the CPU time of the whole step, the least of some, measured without looking into it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from against_transformers import WARM_UP, Ours, Theirs, next_step, settings_of, timed
from torch.utils._python_dispatch import TorchDispatchMode

from trelm_ds.distributed import connect, disconnect
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run

ROUNDS = 9  # steps, of which the quickest counts
_TORCH = (
    str(Path(torch.__file__).parent / "_"),
    *(str(Path(torch.__file__).parent / name) for name in ("nn", "utils", "autograd")),
)


class Operations(TorchDispatchMode):
    """Time every operation, by its name and its callers."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: Counter[tuple[str, str]] = Counter()
        self.calls: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        begun = time.thread_time()
        result = func(*args, **(kwargs or {}))
        seconds = time.thread_time() - begun
        key = str(func), callers()
        self.seconds[key] += seconds
        self.calls[key] += 1
        return result


def callers() -> str:
    """Name the two innermost functions outside torch's internals and this file."""
    frame, found = sys._getframe(2), []
    while frame is not None and len(found) < 2:
        code = frame.f_code
        if not code.co_filename.startswith(_TORCH):
            found.append(f"{Path(code.co_filename).name}:{code.co_name}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(found)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    options.add_argument("--data", type=Path, required=True, help="dataset of `trelm prepare`")
    options.add_argument("--lines", type=int, default=30, help="how many operations to list of each")
    options.add_argument("--lengths", choices=("dataset", "full"), default="full")
    own, settings = options.parse_known_args()
    config, ranks, full = settings_of(settings), connect(), own.lengths == "full"
    try:
        with tempfile.TemporaryDirectory() as folder, StopSignals() as signals:
            ours = Ours(build_run(config, str(own.data), Path(folder) / "run", ranks, signals))
            theirs = Theirs(ours.trainer.engine.module.config, config, ranks.device)
            seconds = [
                (timed(ours.step, step), timed(theirs.step, batches))
                for step, batches in (next_step(ours, full) for _ in range(WARM_UP + ROUNDS))
            ]
            step, batches = next_step(ours, full)
            for place, (name, call) in enumerate(
                (("ours", lambda: ours.step(step)), ("theirs", lambda: theirs.step(batches)))
            ):
                with Operations() as operations:
                    call()
                least = min(pair[place] for pair in seconds[WARM_UP:])
                print(f"{name}: {least:.3f} s a step; operations of one:")
                for key, taken in operations.seconds.most_common(own.lines):
                    print(f"{1e3 * taken:8.1f} ms {operations.calls[key]:5d}  {key[0]:45} {key[1]}")
    finally:
        disconnect()


if __name__ == "__main__":
    main()
