"""Start a program that ends with the process that started it, and that gets no more memory than it may have.

Run by path, so that nothing is imported before: `python -I confined.py PARENT BYTES COMMAND ...`. PARENT is the process
that starts it; BYTES limits what each process may write into (RLIMIT_DATA, so that an allocation fails and says so; a
limit on addresses would count libraries), 0 for no limit. What the program starts inherits the limit.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, limit: int, command: list[str]) -> None:
    """Become the command."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it has ended before that took effect
        sys.exit(1)
    if limit:
        # Nobody may raise what his shell has limited, and there are sizes that no limit can have.
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = sys.maxsize if hard == resource.RLIM_INFINITY else hard
        resource.setrlimit(resource.RLIMIT_DATA, (min(limit, most),) * 2)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
