"""Tolerance for malformed records in large inputs: a few are skipped and reported, too many are an error."""

from __future__ import annotations

from pathlib import Path

from trelm_ds import log
from trelm_ds.errors import UserError

_SHOWN = 10  # records per file reported by file and line


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
        """Count `count` malformed records; each of `messages` begins with file and line of one of them."""
        self.count += count
        self._places += messages[: _SHOWN - len(self._places)]

    def check(self, total: int) -> None:
        """Warn about skipped records; call it once the file has been read.

        Args:
            total: number of records read, malformed ones included.

        Raises:
            UserError: there are more than the budget allows; the message begins with file and line of the first.
        """
        if not self.count:
            return
        if self.count > self._budget * total:
            allowed = f"--max-malformed {self._budget:g} allows less" if self._budget else "none is allowed"
            raise UserError(f"{self._places[0]} ({self.count} of {total:,} records malformed, {allowed})")
        for message in self._places:  # once: files of names are read more than once
            log.warning_once(f"left out: {message}")
        if self.count > len(self._places):
            log.warning_once(f"left out: {self.count - len(self._places)} more in {self._path}")
