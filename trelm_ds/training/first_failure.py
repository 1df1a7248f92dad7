"""When ranks fail one after the other, because the first takes the others along, lets only the first explain itself."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import torch.distributed as dist

from trelm_ds import log
from trelm_ds.errors import CommonError, RankError, UserError

_KEY = "trelm/failed"
_GRACE_S = 5.0  # for the failing rank to say so before those who only miss it


class FailedElsewhereError(Exception):
    """This rank ends because another has failed."""


@contextlib.contextmanager
def first_failure_speaks() -> Iterator[None]:
    """Let an exception through on the rank where it came first; elsewhere make it one line.

    Raises:
        FailedElsewhereError: another rank has failed before.
    """
    store = dist.distributed_c10d._get_default_store().clone() if dist.get_world_size() > 1 else None  # type: ignore[attr-defined]
    try:
        yield
    except CommonError:
        raise
    except Exception as error:
        if store is None:
            raise
        rank = dist.get_rank()
        lost = isinstance(error, dist.DistBackendError | dist.DistNetworkError) or "onnection" in str(error)
        try:
            if lost:  # a symptom: give the cause time to speak
                deadline = time.monotonic() + _GRACE_S
                while not store.check([_KEY]) and time.monotonic() < deadline:
                    time.sleep(0.1)
            line = f"rank {rank} on {socket.gethostname()}: {_in_a_line(error)}"
            first = store.compare_set(_KEY, "", line).decode()
        except RuntimeError:  # the store has gone with its process
            if not lost:
                raise error from None
            log.info(f"trelm: rank {rank} on {socket.gethostname()} has lost the others")
            raise FailedElsewhereError("the rank that kept the store") from None
        if first == line:
            if isinstance(error, UserError):
                raise RankError(str(error)) from None  # which the command line prints on every rank
            log.error(line)
            raise
        log.info(f"trelm: rank {rank} ends because of {first}")
        raise FailedElsewhereError(first) from None


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
