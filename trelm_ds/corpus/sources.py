"""Finds the text files behind `--source` and tells by their content what they are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from trelm_ds.corpus.documents import Document
from trelm_ds.corpus.linked import read_linked
from trelm_ds.corpus.wikipedia import read_articles
from trelm_ds.errors import UserError
from trelm_ds.files import DAMAGED, open_binary

Kind = Literal["mediawiki", "linked"]
_PEEK = 4096


def find_sources(source: Path) -> tuple[Kind, list[Path]]:
    """The files of `source` (a file, or a folder's files in order of name) and their common kind.

    Raises:
        UserError: nothing there, a file of unknown content, or a folder that mixes kinds.
    """
    if not source.exists():
        raise UserError(f"--source: {source} does not exist")
    files = sorted(path for path in source.iterdir() if path.is_file()) if source.is_dir() else [source]
    if not files:
        raise UserError(f"--source: {source} holds no file")
    kinds = {path: _kind(path) for path in files}
    first = kinds[files[0]]
    for path, kind in kinds.items():
        if kind != first:
            raise UserError(f"--source: {path} is {kind}, {files[0]} is {first}; prepare them one after the other")
    return first, files


def _kind(path: Path) -> Kind:
    with open_binary(path) as stream:
        try:
            start = stream.read(_PEEK)
        except DAMAGED as error:
            raise UserError(f"{path}: damaged or truncated file ({error}); fetch it again") from None
    text = start.decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n")
    if text.startswith(("<mediawiki", "<?xml")) and "<mediawiki" in text:
        return "mediawiki"
    if text.startswith("{"):
        return "linked"
    raise UserError(f"{path}: neither a MediaWiki dump (<mediawiki ...>) nor linked JSONL ({{...}} lines)")


def read_documents(
    kind: Kind, files: list[Path], redirects: dict[str, str], counts: Counter[str]
) -> Iterator[Document]:
    """Yields the documents of all files; mention targets are QID numbers (linked) or titles (mediawiki)."""
    for path in files:
        yield from read_linked(path, counts) if kind == "linked" else read_articles(path, redirects, counts)


def write_spool(documents: Iterator[Document], path: Path) -> set[str]:
    """Keeps documents in a JSONL file, so that wikitext is parsed once; returns the linked titles."""
    titles: set[str] = set()
    with path.open("w", encoding="utf-8") as stream:
        for document in documents:
            titles.update(target for _, _, target in document.mentions if isinstance(target, str))
            stream.write(json.dumps(document, ensure_ascii=False) + "\n")
    return titles


def read_spool(path: Path) -> Iterator[tuple[str, list[tuple[int, int, int | str]]]]:
    """Yields (text, mentions) of what `write_spool` kept."""
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            text, mentions = json.loads(line)
            yield text, [(start, end, target) for start, end, target in mentions]
