"""Map steps of entity linking, per chunk: count anchors, then occurrences of a dictionary's phrases.

Partial results are sums and unions, so the merged totals do not depend on how documents are divided into chunks.
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
        links: int64 [n, 2], distinct pairs (document id, QID number of an entity it links to), ascending.
    """

    anchors: list[Row]
    links: np.ndarray

    def save(self, folder: Path) -> None:
        """Write `anchors.tsv` and `links.npy` into a new folder."""
        folder.mkdir(parents=True)
        write_rows(self.anchors, folder / _ANCHORS)
        np.save(folder / _LINKS, self.links)

    @classmethod
    def load(cls, folder: Path) -> AnchorCounts:
        """Load what `save` wrote.

        Raises:
            UserError: a file is missing or damaged.
        """
        return cls(list(read_rows(folder / _ANCHORS)), load_links(folder))


def count_anchors(documents: Iterable[Document], first_document: int = 0) -> AnchorCounts:
    """Count which entities are linked under which names, and from which documents (map 1).

    Args:
        documents: documents whose mentions have QID numbers as targets.
        first_document: id of the first document; the others are numbered from there. For the result not to depend on
            chunking, ids must be unique over all chunks and ascend in corpus order.
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
    """Write rows as tab-separated lines; normalized phrases contain neither tab nor newline."""
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for phrase, qid, times in rows:
            stream.write(f"{phrase}\t{qid}\t{times}\n")


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file written by `write_rows`.

    Raises:
        UserError: the file is missing or a line is malformed; names file and line.
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
    """Return the path of the sorted rows written by `AnchorCounts.save`."""
    return folder / _ANCHORS


def load_links(folder: Path) -> np.ndarray:
    """Load the `links` that `AnchorCounts.save` wrote to `folder`.

    Raises:
        UserError: the file is missing or damaged.
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
        rows: int32 [n, 1 + 2 * CASES]: phrase id, ascending; per case class the number of documents that contain the
            phrase; per case class the number of documents that contain it as an anchor.
    """

    rows: np.ndarray

    def save(self, path: Path) -> None:
        """Write one .npy file."""
        with path.open("wb") as stream:
            np.save(stream, self.rows)

    @classmethod
    def load(cls, path: Path) -> OccurrenceCounts:
        """Load what `save` wrote.

        Raises:
            UserError: the file is missing or damaged.
        """
        return cls(_load_array(path, 1 + 2 * CASES, np.int32))


def count_occurrences(dictionary: LinkDictionary, documents: Iterable[Document]) -> OccurrenceCounts:
    """Count the documents in which each phrase occurs, and those in which it is linked (map 2).

    Counts documents, not occurrences, because an article links a name once and then keeps using it without a link.
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
