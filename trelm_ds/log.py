"""The program's log: lines on stderr for whatever is not a command's result, which goes to stdout.

An info line stands as it is, a warning begins with `warning: `, an error with `trelm: error: `. On ranks other than 0
info lines and warnings name the rank, and its host where there are several nodes. An error names a rank itself where it
matters; most concern all.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import sys
import warnings

from trelm_ds.redact import without_password

logger = logging.getLogger("trelm_ds")
logger.setLevel(logging.INFO)
debug, info, warning, error = logger.debug, logger.info, logger.warning, logger.error


def info_rank0(message: str) -> None:
    """Log on rank 0 only what every rank has to say."""
    if _rank() == 0:
        logger.info(message, stacklevel=2)


def warning_rank0(message: str) -> None:
    """Warn on rank 0 only of what every rank meets."""
    if _rank() == 0:
        logger.warning(message, stacklevel=2)


@functools.cache
def warning_once(message: str) -> None:
    """Warn, unless this process has given the same warning before."""
    logger.warning(message, stacklevel=2)


def setup() -> None:
    """Send the log, and the warnings of libraries, to stderr; called once by each program."""
    handler = _StderrHandler()
    handler.setFormatter(_Formatter())
    logger.handlers = [handler]
    logger.propagate = False  # a library that configures the root logger would repeat every line
    warnings.showwarning = _log_library_warning


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # sys.stderr is looked up for every line: a progress bar on a terminal replaces it, to print above itself.
        print(self.format(record), file=sys.stderr, flush=True)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = without_password(record.getMessage())
        if record.levelno >= logging.ERROR:
            return f"trelm: error: {message}"
        if record.levelno >= logging.WARNING:
            message = f"warning: {' '.join(message.split())}"
        return _rank_prefix() + message


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))  # of torchrun, or of connect()


def _rank_prefix() -> str:
    if not (rank := _rank()):
        return ""
    world_size = os.environ.get("WORLD_SIZE", "1")
    several_nodes = os.environ.get("LOCAL_WORLD_SIZE", world_size) != world_size
    return f"[rank {rank} on {socket.gethostname()}] " if several_nodes else f"[rank {rank}] "


def _log_library_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """Show users the libraries' warnings that are meant for users; deprecations are not."""
    if issubclass(category, UserWarning):
        warning(str(message))
