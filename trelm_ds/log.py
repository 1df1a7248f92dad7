"""The program's log: lines on stderr for whatever is not a command's result, which goes to stdout.

An info line stands as it is, a warning begins with `warning: `, an error with `trelm: error: `. On ranks other than 0
info lines and warnings name the rank, and its host where there are several nodes. An error names a rank itself where it
matters; most concern all.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import sys
import traceback
import warnings
from types import TracebackType

from trelm_ds.redact import without_password
from trelm_ds.visible import visible

logger = logging.getLogger("trelm_ds")
logger.setLevel(logging.INFO)
debug, info, warning, error = logger.debug, logger.info, logger.warning, logger.error
_follow_ranks = False


def info_rank0(message: str) -> None:
    """Log on rank 0 only what every rank has to say."""
    if rank() == 0:
        logger.info(message, stacklevel=2)


def warning_rank0(message: str) -> None:
    """Warn on rank 0 only of what every rank meets."""
    if rank() == 0:
        logger.warning(message, stacklevel=2)


@functools.cache
def info_once(message: str) -> None:
    """Log, unless this process has said the same before."""
    logger.info(message, stacklevel=2)


@functools.cache
def warning_once(message: str) -> None:
    """Warn, unless this process has given the same warning before."""
    logger.warning(message, stacklevel=2)


def setup(distributed: bool = False) -> None:
    """Send the log, the warnings of libraries and a crash's traceback to stderr; called once by each program.

    Args:
        distributed: whether this process is one of several ranks. In other programs RANK means nothing: a shell or a
            cluster's pod may have it set, and what is for rank 0 would never be said.
    """
    global _follow_ranks
    _follow_ranks = distributed
    handler = _StderrHandler()
    handler.setFormatter(_Formatter())
    logger.handlers = [handler]
    logger.propagate = False  # a library that configures the root logger would repeat every line
    warnings.showwarning = _log_library_warning
    sys.excepthook = _show_crash


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # sys.stderr is looked up for every line: a progress bar on a terminal replaces it, to print above itself.
        # Whoever reads it may be gone (tee, ssh); that ends no training.
        with contextlib.suppress(OSError, ValueError):
            print(self.format(record), file=sys.stderr, flush=True)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = visible(without_password(record.getMessage()))
        if record.levelno >= logging.ERROR:
            return f"trelm: error: {' '.join(message.split())}"
        if record.levelno >= logging.WARNING:
            message = f"warning: {' '.join(message.split())}"
        return _rank_prefix() + message


def rank() -> int:
    """Return the rank that the log speaks for: RANK where processes are ranks, else 0."""
    given = os.environ.get("RANK", "0")
    return int(given) if _follow_ranks and given.isdecimal() else 0


def _rank_prefix() -> str:
    if not (own := rank()):
        return ""
    world_size = os.environ.get("WORLD_SIZE", "1")
    several_nodes = os.environ.get("LOCAL_WORLD_SIZE", world_size) != world_size
    return f"[rank {own} on {socket.gethostname()}] " if several_nodes else f"[rank {own}] "


def _log_library_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """Show users the libraries' warnings that are meant for users; deprecations are not."""
    if issubclass(category, UserWarning):
        warning(str(message))


def _show_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback as Python does, without passwords: a library's error may repeat an address."""
    text = "".join(traceback.format_exception(kind, error, trace))
    with contextlib.suppress(OSError, ValueError):
        print(without_password(text), end="", file=sys.stderr, flush=True)
