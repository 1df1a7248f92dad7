"""Which parts of the text (`--part i/n`) are finished: a mark each, written when all its chunks are on disk."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trelm_ds.corpus.artifacts import key_of
from trelm_ds.corpus.sources import Source
from trelm_ds.files import lock, write_atomically

if TYPE_CHECKING:
    from trelm_ds.corpus.prepare import PrepareOptions


class PartMarks:
    """The marks in a work folder.

    A mark holds a hash of what decides the chunks, so that one of an earlier request does not count. Of the text it
    knows names and sizes only: what changed otherwise is found by the merge, which looks at the chunks themselves.
    """

    def __init__(self, options: PrepareOptions, sources: list[Source], work: Path) -> None:
        self.folder, self.out = work / "parts", options.out
        files = [[source.kind, source.path.name, source.layout, source.bytes] for source in sources]
        self.key = key_of("parts", options.min_words, options.chunk_mb, files)

    @contextlib.contextmanager
    def making(self, number: int, of: int) -> Iterator[None]:
        """Marks the part as finished when the block ends well; until then it counts as missing.

        Raises:
            UserError: another process works on the same part.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        mark = self._mark(number, of)
        with lock(mark.with_suffix(".lock"), f"--part: {number}/{of} of {self.out}"):
            mark.unlink(missing_ok=True)
            yield
            write_atomically(mark, self.key)

    def missing(self, of: int) -> list[int]:
        """The numbers of the unfinished ones of `of` parts, ascending."""
        return [number for number in range(1, of + 1) if not self._is_finished(number, of)]

    def missing_names(self) -> list[str]:
        """Like `missing`, as i/n, where the marks tell of how many parts; else empty."""
        found = [re.fullmatch(r"(\d+)-of-(\d+)", path.name) for path in self.folder.glob("*-of-*")]
        counts = {int(name[2]) for name in found if name and self._is_finished(int(name[1]), int(name[2]))}
        return [f"{number}/{of}" for of in counts for number in self.missing(of)] if len(counts) == 1 else []

    def _mark(self, number: int, of: int) -> Path:
        return self.folder / f"{number}-of-{of}"

    def _is_finished(self, number: int, of: int) -> bool:
        try:
            return self._mark(number, of).read_text() == self.key
        except OSError:
            return False
