"""torchrun with the node's address under Slurm and with the ranks' own exit code.

torchrun itself exits with 1 and a traceback whatever its ranks' exit codes, so a batch script cannot tell a mistake in
the settings, which no restart fixes, from a lost node or a time limit. This launcher takes torchrun's arguments, runs
it in this process, and turns its exceptions into one line and an exit code.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError

from trelm_ds import log
from trelm_ds.files import write_atomically

_SPECIFIC_CODES = (2, 75, 130, 71)  # codes that batch scripts act on: user error, out of time, stop file, hang
_SIOCGIFADDR = 0x8915


def main(argv: Sequence[str] | None = None) -> int:
    """Run torchrun with these arguments.

    Reads two environment variables of the batch script: TRELM_NODE_ADDRESSES, "n1=10.0.0.1 n2=10.0.0.2", and
    TRELM_EXIT_FOLDER, where each node writes its exit code, because `srun` returns only one for all nodes. Without them
    this is plain torchrun.

    Returns:
        The exit code: 0; the code of the first rank that failed, or a more telling one of another failed rank; 128 + n
        after signal n.
    """
    log.setup()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    try:
        # Later options win, so the caller can override these. By default torchrun forwards all of them but SIGUSR1.
        torchrun.main(["--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1", *_address(), *arguments])
        code, reason = 0, ""
    except ChildFailedError as error:
        codes = {rank: _code(failure.exitcode) for rank, failure in error.failures.items()}
        code = next((code for code in _SPECIFIC_CODES if code in codes.values()), codes[error.get_first_failure()[0]])
        ranks = ", ".join(f"rank {rank} {of_rank}" for rank, of_rank in sorted(codes.items()))
        reason = f"exit codes on {socket.gethostname()}: {ranks}"
    except SystemExit as error:  # an argument torchrun does not know
        code, reason = (error.code if isinstance(error.code, int) else 1), ""
    except RendezvousError:  # the launcher that kept the store of all of them has ended
        code, reason = 1, "has lost the launcher of another node"
    except SignalException as error:
        code, reason = 128 + error.sigval, f"ended by {signal.Signals(error.sigval).name}"
    if folder := os.environ.get("TRELM_EXIT_FOLDER"):
        try:
            write_atomically(Path(folder) / os.environ.get("SLURM_NODEID", "0"), f"{code}\n")
        except OSError as error:
            log.info(f"trelm launcher: {folder}: cannot be written: {error.strerror}")
    if reason:
        log.info(f"trelm launcher: {reason}")
    return code


def _code(exitcode: int) -> int:
    """Convert a process's exit code to the shell's: -n, for signal n, becomes 128 + n."""
    return 128 - exitcode if exitcode < 0 else exitcode


def _address() -> list[str]:
    """Return torchrun's option for this node's address, and bind gloo to the interface that has it."""
    known = dict(pair.split("=", 1) for pair in os.environ.get("TRELM_NODE_ADDRESSES", "").split())
    name = known.get(os.environ.get("SLURMD_NODENAME", ""))
    if name is None:
        return []
    # By default gloo uses the interface of the host's own name, which on many clusters other nodes cannot reach.
    try:
        interface = _interface_of(socket.gethostbyname(name))
    except OSError:  # NCCL and torchrun may still find an interface
        interface = None
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    return [f"--local-addr={name}"]


def _interface_of(address: str) -> str | None:
    """Find the network interface that has an IPv4 address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, interface in socket.if_nameindex():
            request = struct.pack("256s", interface.encode()[:15])
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, request)
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return interface
    return None


if __name__ == "__main__":
    sys.exit(main())
