"""Malformed lines in big inputs: a few are left out and shown, too many are refused."""

from __future__ import annotations

from pathlib import Path

from trelm_ds import log
from trelm_ds.errors import UserError

_SHOWN = 10


class MalformedRecords:
    """Counts the malformed lines or pages of one file.

    Args:
        path: the file, for messages.
        budget: share of the records that may be malformed.
    """

    def __init__(self, path: Path, budget: float) -> None:
        self.count = 0
        self._path, self._budget = path, budget
        self._places: list[str] = []

    def add(self, messages: list[str], count: int = 1) -> None:
        """Notes `count` malformed records; `messages` begin with file and line of the first of them."""
        self.count += count
        self._places += messages[: _SHOWN - len(self._places)]

    def check(self, total: int) -> None:
        """Warns of what was left out, once the file has been read.

        Args:
            total: records read, malformed ones included.

        Raises:
            UserError: more than the budget; the message begins with the first place.
        """
        if not self.count:
            return
        if self.count > self._budget * total:
            share = f"{self.count} of {total:,} records malformed, --max-malformed {self._budget:g} allows less"
            raise UserError(f"{self._places[0]} ({share})")
        for message in self._places:  # once: files of names are read more than once
            log.warning_once(f"left out: {message}")
        if self.count > len(self._places):
            log.warning_once(f"left out: {self.count - len(self._places)} more in {self._path}")
