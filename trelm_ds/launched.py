"""The environment by which a launcher, such as torchrun, tells a process which rank it is."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from trelm_ds import log
from trelm_ds.errors import UserError

_NUMBERS = ("RANK", "WORLD_SIZE", "MASTER_PORT")
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def is_launched() -> bool:
    """Tell whether this process is a rank. One variable alone, such as a RANK that a shell has left, does not count."""
    return all(os.environ.get(name) for name in _NEEDED)


def leave_exit_code(code: int) -> None:
    """Write the code with which this rank will end to TRELM_EXIT_FOLDER/rank-N, where a batch script has set that.

    The launchers report the codes too, but one that loses another, or that Slurm ends because another has ended, does
    not know what its ranks would have said: the request to stop would be taken for a crash, and the job started again.
    """
    folder = os.environ.get("TRELM_EXIT_FOLDER")
    if folder and is_launched():
        with contextlib.suppress(OSError):
            Path(folder, f"rank-{os.environ['RANK']}").write_text(f"{code}\n")


def complete_environment() -> None:
    """Complete the environment of a rank, or make that of a process that trains alone.

    Raises:
        UserError: the environment names a rank, but does not say which or where to meet the others.
    """
    if is_launched():
        for name in (*_NUMBERS, *(["LOCAL_RANK"] if "LOCAL_RANK" in os.environ else [])):
            if not os.environ[name].isdecimal():
                raise UserError(f"{name}: must be a number where a launcher has set it, got '{os.environ[name]}'")
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if rank >= world_size:
            raise UserError(f"RANK: is {rank}, but WORLD_SIZE is {world_size}; unset both, or start with torchrun")
        if "LOCAL_RANK" not in os.environ:  # as in a PyTorchJob, whose pods have one process each
            log.info("LOCAL_RANK is not set: this is taken for the only process of its node")
            os.environ["LOCAL_RANK"] = "0"
        return
    if given := [name for name in ("RANK", "WORLD_SIZE") if os.environ.get(name)]:
        missing = ", ".join(name for name in _NEEDED if not os.environ.get(name))
        are = "are" if len(given) > 1 else "is"
        raise UserError(f"{' and '.join(given)} {are} set, but not {missing}: unset, or start the ranks with torchrun")
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    # Port 0: the store takes a free one. A port that was free a moment ago may be another process's by then.
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
