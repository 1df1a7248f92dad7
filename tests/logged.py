"""Expect lines in the program's log, as `pytest.warns` expects Python's warnings."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator

from trelm_ds import log


@contextlib.contextmanager
def warns(match: str) -> Iterator[list[str]]:
    """Fail unless a warning matches; yield the list of all warnings so far. Works in the processes of ranks as well."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    log.logger.addHandler(handler)
    try:
        yield messages
    finally:
        log.logger.removeHandler(handler)
    assert any(re.search(match, message) for message in messages), f"{match!r} is not in {messages}"
