"""When one rank fails and the others fail because of it, let only the first explain itself."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import torch.distributed as dist

from trelm_ds import log
from trelm_ds.errors import CommonError, UserError

_KEY, _TOLD = "trelm/failed", "trelm/told"
# For the rank that failed to say so, before a rank that has only lost its connection to it, and before another ends:
# the launcher would then end it as well.
_GRACE_S = 5.0
# gloo reports a lost peer as a plain RuntimeError, whose text alone tells it from other errors; "Broken pipe" comes
# where it was sending.
_GLOO_LOST_PEER = ("Connection closed", "Connection reset", "Connection refused", "Connection timed out", "Broken pipe")


class FailedElsewhereError(Exception):
    """Raised on a rank that ends because another has failed."""


@contextlib.contextmanager
def first_failure_speaks() -> Iterator[None]:
    """Let an exception through on the rank where it came first; on the others, log one line that names that rank.

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
        lost = _lost_peer(error)
        try:
            if lost:  # a symptom: give the rank with the cause time to speak
                _wait_for(store, _KEY)
            line = f"rank {rank} on {socket.gethostname()}: {_in_a_line(error)}"
            first = store.compare_set(_KEY, "", line).decode()
        except RuntimeError:  # the store is gone, with the process that kept it
            if not lost:
                raise error from None
            log.info(f"trelm: rank {rank} on {socket.gethostname()} has lost the others")
            raise FailedElsewhereError("the rank that kept the store") from None
        if first == line:
            log.error(str(error) if isinstance(error, UserError) else line)
            if isinstance(error, UserError):
                error.reported = True
            with contextlib.suppress(RuntimeError):
                store.set(_TOLD, "")
            raise
        with contextlib.suppress(RuntimeError):
            _wait_for(store, _TOLD)
        log.info(f"trelm: rank {rank} ends because of {first}")
        raise FailedElsewhereError(first) from None


def _wait_for(store: dist.Store, key: str) -> None:
    """Wait until another rank has set a key, for a few seconds at most."""
    deadline = time.monotonic() + _GRACE_S
    while not store.check([key]) and time.monotonic() < deadline:
        time.sleep(0.05)


def _lost_peer(error: Exception) -> bool:
    """Return whether an exception says that another rank is gone."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _GLOO_LOST_PEER)


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
