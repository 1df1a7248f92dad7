"""torchrun that ends as its ranks have ended.

torchrun itself ends with 1 and a traceback whatever its ranks say, so a batch script cannot tell a mistake in the
settings, which no new start will mend, from a lost node or a time limit. This one takes torchrun's arguments, runs it in
this process, and turns what it raises into one line and an exit code.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from trelm_ds.files import write_atomically

_FIRST = (2, 75, 130, 71)  # what a batch script decides by: mistake, out of time, stop file, hang
EXIT_FILE = "TRELM_EXIT_FILE"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs torchrun with these arguments.

    Returns:
        The exit code: 0; that of the ranks, where several differ the one that says most; 128 + n by signal n. It is also
        written to the file that TRELM_EXIT_FILE names, since `srun` gives but one code for all nodes.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        torchrun.main(arguments)
        code, reason = 0, ""
    except ChildFailedError as error:
        codes = {rank: _code(failure.exitcode) for rank, failure in error.failures.items()}
        code = _most_telling(list(codes.values()))
        ranks = ", ".join(f"rank {rank}: {of_rank}" for rank, of_rank in sorted(codes.items()))
        reason = f"exit codes on {socket.gethostname()}: {ranks}"
    except SignalException as error:
        code, reason = 128 + error.sigval, f"ended by {signal.Signals(error.sigval).name}"
    if path := os.environ.get(EXIT_FILE):
        write_atomically(Path(path), f"{code}\n")
    if reason:
        print(f"trelm launcher: {reason}", file=sys.stderr, flush=True)
    return code


def _code(exitcode: int) -> int:
    return 128 - exitcode if exitcode < 0 else exitcode


def _most_telling(codes: Sequence[int]) -> int:
    return next((code for code in _FIRST if code in codes), max(codes, default=1))


if __name__ == "__main__":
    sys.exit(main())
