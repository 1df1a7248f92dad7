"""What is counted in the text, chunk by chunk: anchors first, then every occurrence of a dictionary's phrases.

Partial results are sums and unions, so they merge to the same totals however documents were cut into chunks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trelm_ds.corpus.documents import Document
from trelm_ds.corpus.linking.dictionary import LinkDictionary
from trelm_ds.corpus.linking.text import CASES, case_of, is_phrase, normalize, phrase_of, trim
from trelm_ds.errors import UserError

_ANCHORS, _LINKS = "anchors.tsv", "links.npy"
Row = tuple[str, int, int]  # phrase, QID number, times


@dataclass(frozen=True)
class AnchorCounts:
    """Anchors of a chunk of documents.

    Attributes:
        anchors: (normalized anchor text, QID number, times), ascending.
        links: int64 [n, 2], the distinct (document id, QID number) pairs, ascending: who links to what.
    """

    anchors: list[Row]
    links: np.ndarray

    def save(self, folder: Path) -> None:
        """Writes `anchors.tsv` and `links.npy` into a new folder."""
        folder.mkdir(parents=True)
        write_rows(self.anchors, folder / _ANCHORS)
        np.save(folder / _LINKS, self.links)

    @classmethod
    def load(cls, folder: Path) -> AnchorCounts:
        """Reads what `save` wrote.

        Raises:
            UserError: missing or damaged file.
        """
        return cls(list(read_rows(folder / _ANCHORS)), load_links(folder))


def count_anchors(documents: Iterable[Document], first_document: int = 0) -> AnchorCounts:
    """Map 1: who is linked under which name, and from where.

    Args:
        documents: their mentions' targets must be QID numbers.
        first_document: id of the first document; the following ones count up. Ids must be unique over all chunks and
            ascend in the corpus' order for the result not to depend on chunking.
    """
    anchors: Counter[tuple[str, int]] = Counter()
    links = list[tuple[int, int]]()
    for number, document in enumerate(documents, first_document):
        entities = set()
        for start, end, target in document.mentions:
            qid = int(target)
            entities.add(qid)
            phrase = phrase_of(document.text[start:end])
            if is_phrase(phrase):
                anchors[phrase, qid] += 1
        links += [(number, qid) for qid in sorted(entities)]
    rows = [(phrase, qid, times) for (phrase, qid), times in sorted(anchors.items())]
    return AnchorCounts(rows, np.array(links, dtype=np.int64).reshape(-1, 2))


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Writes rows as tab separated lines; a normalized phrase holds neither tab nor newline."""
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for phrase, qid, times in rows:
            stream.write(f"{phrase}\t{qid}\t{times}\n")


def read_rows(path: Path) -> Iterator[Row]:
    """Yields the rows of a file that `write_rows` wrote.

    Raises:
        UserError: missing file or malformed line; names file and line.
    """
    number = 0
    try:
        with path.open(encoding="utf-8", newline="\n") as stream:
            for line in stream:
                number += 1
                phrase, qid, times = line.split("\t")
                yield phrase, int(qid), int(times)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path}:{number}: damaged; count the anchors again") from None


def anchors_file(folder: Path) -> Path:
    """Where `AnchorCounts.save` put the sorted rows."""
    return folder / _ANCHORS


def load_links(folder: Path) -> np.ndarray:
    """The `links` that `AnchorCounts.save` put into `folder`.

    Raises:
        UserError: missing or damaged file.
    """
    return _load_array(folder / _LINKS, 2, np.int64)


def _load_array(path: Path, columns: int, dtype: type) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        raise UserError(f"{path}: damaged ({error}); count again") from None
    if array.ndim != 2 or array.shape[1] != columns or array.dtype != dtype:
        raise UserError(f"{path}: expected {np.dtype(dtype)} [n, {columns}], got {array.dtype} {list(array.shape)}")
    return array


@dataclass(frozen=True)
class OccurrenceCounts:
    """Occurrences of a dictionary's phrases in a chunk of documents.

    Attributes:
        rows: int32 [n, 1 + 2 * CASES]: phrase id, ascending; by case class the number of documents that hold the
            phrase; by case class the number of documents that hold it as an anchor.
    """

    rows: np.ndarray

    def save(self, path: Path) -> None:
        """Writes one .npy file."""
        with path.open("wb") as stream:
            np.save(stream, self.rows)

    @classmethod
    def load(cls, path: Path) -> OccurrenceCounts:
        """Reads what `save` wrote.

        Raises:
            UserError: missing or damaged file.
        """
        return cls(_load_array(path, 1 + 2 * CASES, np.int32))


def count_occurrences(dictionary: LinkDictionary, documents: Iterable[Document]) -> OccurrenceCounts:
    """Map 2: in how many documents each phrase occurs, and in how many of them it is linked.

    Documents are counted, not places: an article links a name once and goes on using it.
    """
    held, linked = Counter[int](), Counter[int]()
    for document in documents:
        text = normalize(document.text)
        anchors = {trim(document.text, start, end) for start, end, _ in document.mentions}
        here, here_linked = set[int](), set[int]()
        for first, last, phrase in dictionary.find(text.text):
            span = text.span(first, last)
            key = phrase * CASES + case_of(document.text[span[0] : span[1]])
            here.add(key)
            if span in anchors:
                here_linked.add(key)
        held.update(here)
        linked.update(here_linked)
    keys = np.array(sorted(held), dtype=np.int64)
    phrases, at = np.unique(keys // CASES, return_inverse=True)
    rows = np.zeros((len(phrases), 1 + 2 * CASES), dtype=np.int32)
    rows[:, 0] = phrases
    rows[at, 1 + keys % CASES] = [held[key] for key in keys.tolist()]
    rows[at, 1 + CASES + keys % CASES] = [linked[key] for key in keys.tolist()]
    return OccurrenceCounts(rows)
