"""Finished parts of the text (`--part i/n`), each recorded by a marker file once all its chunks are on disk."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from trelm_ds.corpus.artifacts import key_of
from trelm_ds.corpus.options import PrepareOptions
from trelm_ds.corpus.sources import Source
from trelm_ds.files import lock, write_atomically


class PartMarkers:
    """The marker files in a work folder.

    A marker holds a hash of what determines the chunks, so markers of an earlier request are ignored. The hash covers
    only names and sizes of the text files: other changes are detected by the merge, which checks the chunks themselves.
    """

    def __init__(self, options: PrepareOptions, sources: list[Source], work: Path) -> None:
        self.folder, self.out = work / "parts", options.out
        files = [[source.kind, source.path.name, source.layout, source.bytes] for source in sources]
        self.key = key_of("parts", options.min_words, options.chunk_mb, files)

    @contextlib.contextmanager
    def working_on(self, number: int, of: int) -> Iterator[None]:
        """Mark the part as finished if the block succeeds; until then it counts as missing.

        Raises:
            UserError: another process is working on the same part.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        marker = self._marker(number, of)
        with lock(marker.with_suffix(".lock"), f"--part: {number}/{of} of {self.out}"):
            marker.unlink(missing_ok=True)
            yield
            write_atomically(marker, self.key)

    def missing(self, of: int) -> list[int]:
        """List the unfinished ones of `of` parts by number, ascending."""
        return [number for number in range(1, of + 1) if not self._is_finished(number, of)]

    def missing_names(self) -> list[str]:
        """List the unfinished parts as i/n; empty if the markers do not tell the number of parts."""
        found = [re.fullmatch(r"(\d+)-of-(\d+)", path.name) for path in self.folder.glob("*-of-*")]
        counts = {int(name[2]) for name in found if name and self._is_finished(int(name[1]), int(name[2]))}
        return [f"{number}/{of}" for of in counts for number in self.missing(of)] if len(counts) == 1 else []

    def _marker(self, number: int, of: int) -> Path:
        return self.folder / f"{number}-of-{of}"

    def _is_finished(self, number: int, of: int) -> bool:
        try:
            return self._marker(number, of).read_text() == self.key
        except OSError:
            return False
