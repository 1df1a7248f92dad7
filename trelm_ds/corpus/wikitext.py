"""Wikitext to plain paragraphs with links at character offsets (parser: mwparserfromhell)."""

from __future__ import annotations

import re
import string

import mwparserfromhell
from mwparserfromhell import nodes

from trelm_ds.corpus.documents import Document, Mention

# Their content is no prose.
_SKIPPED_TAGS = {
    "ref", "references", "table", "gallery", "math", "chem", "timeline", "syntaxhighlight", "source", "pre", "imagemap",
    "score", "hiero", "noinclude", "includeonly", "templatestyles", "mapframe",
}  # fmt: skip
_LINE_TAGS = {"br", "li", "dd", "dt", "p", "div", "hr", "tr", "blockquote"}
_SKIPPED_SECTIONS = {
    "references", "external links", "see also", "further reading", "notes", "bibliography", "sources", "footnotes",
    "citations", "notes and references", "works cited",
}  # fmt: skip
_PREFIX = re.compile(r"^:?([A-Za-z][\w -]*):")
_LINKED_NAMESPACES = {
    "file", "image", "category", "media", "template", "wikipedia", "wp", "help", "portal", "user", "special", "talk",
    "wiktionary", "wikt", "wikisource", "commons", "wikibooks", "wikiquote", "wikinews", "meta", "module",
}  # fmt: skip
_LANGUAGE = re.compile(r"^[a-z]{2,3}(-[a-z]+)?$")
MINIMUM_WORDS = 4


def normalize_title(title: str) -> str:
    """MediaWiki's spelling of a page title: no fragment, spaces for underscores, first letter capital."""
    title = " ".join(title.partition("#")[0].replace("_", " ").split())
    return title[:1].upper() + title[1:]


def is_disambiguation(title: str, wikitext: str) -> bool:
    """Whether a page only lists what else its title may mean."""
    if title.endswith("(disambiguation)"):
        return True
    return re.search(r"\{\{\s*(?:[\w ]*disambig\w*|hndis|geodis|surname)\s*(?:\||\}\})", wikitext, re.I) is not None


class _Paragraphs:
    """Collects text with single spaces and cuts it into paragraphs at line breaks."""

    def __init__(self) -> None:
        self.done: list[Document] = []
        self._text, self._mentions = "", list[Mention]()

    def add(self, text: str) -> None:
        for index, line in enumerate(text.split("\n")):
            if index:
                self.cut()
            line = re.sub(r"\s+", " ", line)
            if not self._text or self._text.endswith(" "):
                line = line.lstrip(" ")
            self._text += line

    def link(self, anchor: str, title: str) -> None:
        self.add(" " if anchor[:1].isspace() else "")
        start = len(self._text)
        self.add(anchor.replace("\n", " "))
        end = len(self._text.rstrip())
        if end > start and title:
            self._mentions.append(Mention(start, end, title))

    def cut(self) -> None:
        text = self._text.rstrip()
        if len(text.split()) >= MINIMUM_WORDS:
            self.done.append(Document(text, self._mentions))
        self._text, self._mentions = "", []

    def add_after_link(self, text: str) -> None:
        """MediaWiki shows `[[bus]]es` as one link: lower-case letters right behind it belong to the anchor."""
        trail = len(text) - len(text.lstrip(string.ascii_lowercase))
        if trail and self._mentions and self._mentions[-1].end == len(self._text):
            self._mentions[-1] = self._mentions[-1]._replace(end=len(self._text) + trail)
        self.add(text)


def paragraphs_of(wikitext: str) -> list[Document]:
    """Plain paragraphs of an article with its links; a mention's target is the linked title, normalized.

    Templates, tables, references, files and the closing sections (references, external links ...) are left out, and so
    are paragraphs of fewer than `MINIMUM_WORDS` words.
    """
    paragraphs = _Paragraphs()
    _collect(mwparserfromhell.parse(wikitext), paragraphs)
    paragraphs.cut()
    return paragraphs.done


def _collect(code: mwparserfromhell.wikicode.Wikicode, paragraphs: _Paragraphs) -> None:
    skipping = False
    previous = None
    for node in code.nodes:
        behind_link, previous = isinstance(previous, nodes.Wikilink), node
        if isinstance(node, nodes.Heading):
            paragraphs.cut()
            skipping = node.title.strip_code().strip().lower() in _SKIPPED_SECTIONS
        elif skipping or isinstance(node, (nodes.Template, nodes.Comment, nodes.Argument)):
            continue
        elif isinstance(node, nodes.Text):
            (paragraphs.add_after_link if behind_link else paragraphs.add)(node.value)
        elif isinstance(node, nodes.Wikilink):
            _collect_link(node, paragraphs)
        elif isinstance(node, nodes.HTMLEntity):
            character = node.normalize() or ""
            paragraphs.add("" if "\ud800" <= character <= "\udfff" else character)
        elif isinstance(node, nodes.ExternalLink):
            paragraphs.add(node.title.strip_code() if node.title else "")
        elif isinstance(node, nodes.Tag):
            _collect_tag(node, paragraphs)


def _collect_tag(tag: nodes.Tag, paragraphs: _Paragraphs) -> None:
    name = str(tag.tag).strip().lower()
    if name in _SKIPPED_TAGS:
        return
    if name in _LINE_TAGS:
        paragraphs.cut()
    if tag.contents is not None:
        _collect(tag.contents, paragraphs)


def _collect_link(link: nodes.Wikilink, paragraphs: _Paragraphs) -> None:
    target = str(link.title).strip()
    prefix = _PREFIX.match(target)
    namespace = prefix.group(1).strip() if prefix else ""
    if namespace and (namespace.lower() in _LINKED_NAMESPACES or _LANGUAGE.match(namespace)):
        if target.startswith(":") and link.text:  # a visible link to another namespace or wiki is prose all the same
            paragraphs.add(link.text.strip_code())
        return
    anchor = link.text.strip_code() if link.text is not None else target.lstrip(":")
    paragraphs.link(anchor, normalize_title(target))
