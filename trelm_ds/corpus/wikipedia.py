"""Parser of the pages of MediaWiki `pages-articles` dumps."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple
from xml.etree import ElementTree

from trelm_ds.corpus.documents import Document, Mention
from trelm_ds.corpus.markup import too_tangled
from trelm_ds.corpus.page_kinds import is_disambiguation, is_list
from trelm_ds.corpus.site import ENGLISH, Site
from trelm_ds.corpus.wikitext import paragraphs_of
from trelm_ds.errors import UserError

_LARGEST_TEXT = 4 << 20  # characters; MediaWiki accepts 2 MiB, and some older pages are larger
_REDIRECT = re.compile(r"\s*+#REDIRECT\s*+:?\s*+\[\[([^\]|]+)", re.IGNORECASE)


class Page(NamedTuple):
    """A page of the article namespace.

    Attributes:
        title: normalized title.
        number: the page id, or 0.
        redirect: title of the target, or None.
        text: its source.
        model: what the source is: "wikitext", "json", "css" ...
    """

    title: str
    number: int
    redirect: str | None
    text: str
    model: str = "wikitext"


def parse_page(data: bytes, site: Site = ENGLISH) -> Page | None:
    """Parse one `<page>` element; None for a page of another namespace or without a revision.

    Raises:
        UserError: the element is not valid XML.
    """
    try:
        element = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(f"a page that is not valid XML ({error})") from None
    fields = {_local(child.tag): child for child in element}
    if "title" not in fields or "revision" not in fields or _namespace(fields, site) != "0":
        return None
    revision = {_local(child.tag): (child.text or "") for child in fields["revision"]}
    text = revision.get("text", "")
    target = fields["redirect"].get("title") if "redirect" in fields else None
    if target is None and (match := _REDIRECT.match(text)):
        target = match.group(1)
    number = (fields["id"].text or "").strip() if "id" in fields else ""
    return Page(
        site.title(fields["title"].text or ""),
        int(number) if number.isascii() and number.isdigit() and len(number) < 18 else 0,
        site.title(target) or None if target else None,
        text,
        revision.get("model", "").strip() or "wikitext",
    )


def _local(tag: str) -> str:
    """Strip the XML namespace from a tag."""
    return tag.rpartition("}")[2]


def _namespace(fields: dict[str, ElementTree.Element], site: Site) -> str:
    """Return the page's namespace, "0" for articles; old exports encode it in the title only."""
    if "ns" in fields:
        return (fields["ns"].text or "").strip()
    return "0" if site.link_kind(fields["title"].text or "") == "article" else "other"


def article_of(
    page: Page, minimum_words: int, counts: Counter[str], site: Site = ENGLISH, left_out: Counter[str] | None = None
) -> Document | None:
    """Turn a page into a document with one paragraph per line; None if the page is dropped.

    Args:
        page: a page that is not a redirect.
        minimum_words: articles with fewer words of prose are dropped.
        counts: receives the number of articles, dropped pages by reason, paragraphs and links.
        site: the wiki's names.
        left_out: receives the names of the templates that are left out.
    """
    if page.model != "wikitext":
        counts["pages dropped: not wikitext"] += 1
    elif len(page.text) > _LARGEST_TEXT:
        counts["pages dropped: too large"] += 1
    elif is_disambiguation(page.title, page.text):
        counts["pages dropped: disambiguation"] += 1
    elif is_list(page.title, page.text):
        counts["pages dropped: list"] += 1
    elif too_tangled(page.text):
        counts["pages dropped: unclosed markup"] += 1
    else:
        article = _joined(paragraphs_of(page.text, page.title, counts, site, left_out))
        if len(article.text.split()) < minimum_words:
            counts["pages dropped: too short"] += 1
            return None
        counts["articles"] += 1
        counts["paragraphs"] += article.text.count("\n") + 1
        counts["documents"] += 1
        counts["mentions found"] += len(article.mentions)
        return article
    return None


def _joined(paragraphs: list[Document]) -> Document:
    """Join paragraphs into one document, one per line."""
    mentions, offset = list[Mention](), 0
    for text, spans in paragraphs:
        mentions += [Mention(start + offset, end + offset, target) for start, end, target in spans]
        offset += len(text) + 1
    return Document("\n".join(paragraph.text for paragraph in paragraphs), mentions)
