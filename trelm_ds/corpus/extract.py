"""Stage 1, per chunk: parse and check the pages of a dump or the lines of JSONL, and store them as documents."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, NamedTuple

from trelm_ds.corpus.artifacts import Artifact, find, key_of, make, obtain
from trelm_ds.corpus.documents import Document, Mention
from trelm_ds.corpus.linked import parse_linked
from trelm_ds.corpus.sources import Chunk
from trelm_ds.corpus.wikipedia import article_of, parse_page
from trelm_ds.errors import UserError

_DOCUMENTS, _PAGES, _TITLES, _TEMPLATES = "documents.jsonl", "pages.tsv", "titles.tsv", "templates.tsv"
_LARGEST_PAGE = 64 << 20  # bytes of XML; parsing takes several times as much memory
_SHOWN = 10  # malformed records per chunk that are reported by file and line
_GIVE_UP = 100  # malformed records of a chunk that also make up a tenth of it: the file must be something else


@dataclass(frozen=True)
class ExtractTask:
    """Settings for extracting one chunk.

    Attributes:
        chunk: the chunk to extract.
        folder: parent folder of the artifacts.
        minimum_words: articles of a dump with fewer words of prose are dropped.
        may_make: whether a missing artifact may be made now.
    """

    chunk: Chunk
    folder: Path
    minimum_words: int
    may_make: bool = True


class Extracted(NamedTuple):
    """Result of extracting a chunk.

    Attributes:
        chunk: the chunk, without its data.
        artifact: None if it does not exist and could not be made.
        made: whether it was made by this call.
    """

    chunk: Chunk
    artifact: Artifact | None
    made: bool = False


def extract(task: ExtractTask) -> Extracted:
    """Find or make a chunk's artifact.

    The artifact holds `documents.jsonl` ([text, [[start, end, QID number or title] ...]] per line), for dumps also
    `pages.tsv` (page id, title, redirect target), `titles.tsv` (titles linked to) and `templates.tsv` (how often a
    template was left out), and notes: counts, the number of records, and the malformed ones (number, and the first ones
    with place and reason).

    Raises:
        UserError: the file is truncated, damaged or mostly malformed.
    """
    chunk = task.chunk
    stripped = replace(chunk, data=None)
    folder = task.folder / chunk.name
    key = key_of("extract", chunk.source.kind, chunk.source.site.key(), task.minimum_words, chunk.identity())
    found = find(folder, key)
    # The last record may extend beyond the chunk, to `reached`: the key does not cover these bytes, their hash does.
    if found and (not found.notes["reached"] or chunk.hash(chunk.end, found.notes["reached"]) == found.notes["beyond"]):
        return Extracted(stripped, found)
    if not task.may_make or (chunk.source.layout == "stream" and chunk.data is None):
        return Extracted(stripped, None)
    with make(folder, key) as (work, notes):
        _Extraction(chunk, work, task.minimum_words).run(notes)
    return Extracted(stripped, obtain(folder, key), made=True)


class _Extraction:
    """Extracts one chunk into a folder."""

    def __init__(self, chunk: Chunk, work: Path, minimum_words: int) -> None:
        self.chunk, self.work, self.minimum_words = chunk, work, minimum_words
        self.counts: Counter[str] = Counter()
        self.malformed: list[str] = []
        self.n_malformed = self.n_records = 0
        self.titles: set[str] = set()
        self.left_out: Counter[str] = Counter()

    def run(self, notes: dict) -> None:
        """Write the files of the artifact, and fill in its notes."""
        with (
            (self.work / _DOCUMENTS).open("w", encoding="utf-8", newline="\n") as documents,
            (self.work / _PAGES).open("w", encoding="utf-8", newline="\n") as pages,
        ):
            reached: list[int] = []
            for record in self.chunk.records(reached):
                if self.chunk.source.kind == "linked" and not record.data.strip():
                    continue
                self.n_records += 1
                try:
                    document = self._document(record.data, pages)
                except UserError as error:
                    self._note_malformed(f"{self.chunk.where(record)}: {error}")
                    continue
                if document is not None:
                    documents.write(json.dumps(document, ensure_ascii=False) + "\n")
        (self.work / _TITLES).write_text("".join(f"{title}\n" for title in sorted(self.titles)), encoding="utf-8")
        templates = "".join(f"{times}\t{name}\n" for name, times in sorted(self.left_out.items()))
        (self.work / _TEMPLATES).write_text(templates, encoding="utf-8")
        self.counts["templates left out"] = self.left_out.total()
        notes |= {
            "counts": {name: value for name, value in self.counts.items() if value},
            "records": self.n_records,
            "malformed": self.n_malformed,
            "malformed_places": self.malformed,
        }
        last = reached[0] if reached else 0
        notes |= {"reached": last, "beyond": self.chunk.hash(self.chunk.end, last) if last else ""}

    def _document(self, data: bytes, pages: IO[str]) -> Document | None:
        """Parse one record; None for a page that yields no document."""
        if self.chunk.source.kind == "linked":
            document = parse_linked(data)
            self.counts["documents"] += 1
            self.counts["mentions found"] += len(document.mentions)
            return document
        if len(data) > _LARGEST_PAGE:
            self.counts["pages dropped: too large"] += 1
            return None
        page = parse_page(data, self.chunk.source.site)
        if page is None:
            self.counts["pages of other namespaces or without text"] += 1
            return None
        self.counts["pages"] += 1
        pages.write(f"{page.number}\t{page.title}\t{page.redirect or ''}\n")
        if page.redirect:
            self.counts["redirects"] += 1
            return None
        article = article_of(page, self.minimum_words, self.counts, self.chunk.source.site, self.left_out)
        if article is not None:
            self.titles.update(str(mention.target) for mention in article.mentions)
        return article

    def _note_malformed(self, message: str) -> None:
        self.n_malformed += 1
        if len(self.malformed) < _SHOWN:
            self.malformed.append(message)
        if self.n_malformed >= _GIVE_UP and self.n_malformed * 10 > self.n_records:
            raise UserError(f"{self.malformed[0]} (and {self.n_malformed - 1} more like it); is this the right file?")


def read_documents(folder: Path) -> Iterator[Document]:
    """Yield the documents of an artifact; a mention's target is a QID number or a title."""
    with (folder / _DOCUMENTS).open(encoding="utf-8", newline="\n") as stream:
        for line in stream:
            text, mentions = json.loads(line)
            yield Document(text, [Mention(*mention) for mention in mentions])


def read_titles(folder: Path) -> Iterator[str]:
    """Yield the titles that an artifact's documents link to."""
    with (folder / _TITLES).open(encoding="utf-8", newline="\n") as stream:
        for line in stream:
            yield line[:-1]


def read_page_table(folder: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (page id or 0, title, redirect target or "") for each page of an artifact."""
    with (folder / _PAGES).open(encoding="utf-8", newline="\n") as stream:
        for line in stream:
            number, title, target = line[:-1].split("\t")
            yield int(number), title, target


def read_left_out(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield (name, number of times) for each template that an artifact's documents lack."""
    with (folder / _TEMPLATES).open(encoding="utf-8", newline="\n") as stream:
        for line in stream:
            times, _, name = line[:-1].partition("\t")
            yield name, int(times)
