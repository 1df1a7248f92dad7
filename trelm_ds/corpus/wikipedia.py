"""MediaWiki `pages-articles` dumps, streamed: memory does not grow with the dump."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from trelm_ds.corpus.documents import Document, Mention
from trelm_ds.corpus.wikitext import is_disambiguation, normalize_title, paragraphs_of
from trelm_ds.errors import UserError
from trelm_ds.files import DAMAGED, open_binary

_REDIRECT = re.compile(r"\s*#REDIRECT\s*:?\s*\[\[([^\]|]+)", re.IGNORECASE)


class Page(NamedTuple):
    """A page of the article namespace; `redirect` is the target's title or None."""

    title: str
    redirect: str | None
    text: str


def read_pages(path: Path) -> Iterator[Page]:
    """Yields the pages of namespace 0 of a dump, plain or compressed.

    Raises:
        UserError: truncated or damaged file, or not a MediaWiki export; names file and last good page.
    """
    last = "before the first page"
    with open_binary(path) as stream:
        try:
            events = ElementTree.iterparse(stream, events=("start", "end"))
            _, root = next(events)
            if _local(root.tag) != "mediawiki":
                raise UserError(f"{path}: not a MediaWiki export: its first element is <{_local(root.tag)}>")
            for event, element in events:
                if event == "end" and _local(element.tag) == "page":
                    page = _page(element)
                    root.clear()
                    if page:
                        last = f"after page {page.title!r}"
                        yield page
        except ElementTree.ParseError as error:
            raise UserError(f"{path}:{error.position[0]}: not valid XML ({error}), {last}; is it truncated?") from None
        except (ValueError, LookupError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}: cannot be read as XML ({error}), {last}") from None
        except DAMAGED as error:
            raise UserError(f"{path}: damaged or truncated file ({error}), {last}; fetch it again") from None


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _page(element: ElementTree.Element) -> Page | None:
    fields = {_local(child.tag): child for child in element}
    if (fields["ns"].text if "ns" in fields else "0") != "0" or "title" not in fields or "revision" not in fields:
        return None
    text = next((child.text or "" for child in fields["revision"] if _local(child.tag) == "text"), "")
    target = fields["redirect"].get("title") if "redirect" in fields else None
    if target is None and (match := _REDIRECT.match(text)):
        target = match.group(1)
    return Page(normalize_title(fields["title"].text or ""), normalize_title(target) if target else None, text)


def read_articles(path: Path, redirects: dict[str, str], counts: Counter[str]) -> Iterator[Document]:
    """Yields one document an article, a paragraph a line, and counts what is dropped.

    Args:
        path: the dump.
        redirects: filled with title -> target.
        counts: filled with pages, redirects, articles, paragraphs and links.
    """
    for page in read_pages(path):
        counts["pages"] += 1
        if page.redirect:
            redirects[page.title] = page.redirect
            counts["redirects"] += 1
        elif is_disambiguation(page.title, page.text):
            counts["disambiguation pages dropped"] += 1
        else:
            counts["articles"] += 1
            paragraphs = paragraphs_of(page.text)
            article = _joined(paragraphs)
            counts["paragraphs"] += len(paragraphs)
            counts["mentions found"] += len(article.mentions)
            if article.text:
                counts["documents"] += 1
                yield article


def _joined(paragraphs: list[Document]) -> Document:
    mentions, offset = list[Mention](), 0
    for text, spans in paragraphs:
        mentions += [Mention(start + offset, end + offset, target) for start, end, target in spans]
        offset += len(text) + 1
    return Document("\n".join(paragraph.text for paragraph in paragraphs), mentions)
