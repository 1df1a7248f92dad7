"""Conversion of wikitext to plain paragraphs with links at character offsets (parser: mwparserfromhell)."""

from __future__ import annotations

import re
import string
from bisect import bisect_right
from collections import Counter

import mwparserfromhell
from mwparserfromhell import nodes
from mwparserfromhell.wikicode import Wikicode

from trelm_ds.corpus.documents import Document, Mention
from trelm_ds.corpus.templates import visible_part

# Tags whose content is not prose.
_SKIPPED_TAGS = {
    "ref", "references", "table", "gallery", "math", "chem", "timeline", "syntaxhighlight", "source", "pre", "imagemap",
    "score", "hiero", "noinclude", "includeonly", "templatestyles", "mapframe",
}  # fmt: skip
_LINE_TAGS = {"br", "li", "dd", "dt", "p", "div", "hr", "tr", "blockquote"}
_SKIPPED_SECTIONS = {
    "references", "external links", "see also", "further reading", "notes", "bibliography", "sources", "footnotes",
    "citations", "notes and references", "works cited",
}  # fmt: skip
_LINKED_NAMESPACES = {
    "file", "image", "category", "media", "template", "wikipedia", "wp", "help", "portal", "user", "special", "talk",
    "wiktionary", "wikt", "wikisource", "commons", "wikibooks", "wikiquote", "wikinews", "meta", "module",
}  # fmt: skip
_PREFIX = re.compile(r"^:?([A-Za-z][\w -]*):")
_LANGUAGE = re.compile(r"^[a-z]{2,3}(-[a-z]+)?$")
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_REFERENCE = re.compile(r"<ref\b[^<>]*/>|<ref\b[^<>]*>.*?</ref\s*>", re.DOTALL | re.IGNORECASE)
# Possessive, because backtracking over thousands of spaces without a closing brace takes quadratic time.
_TEMPLATE_NAME = re.compile(r"\{\{\s*+([\w-][\w -]{0,49}?)\s*+(?=\||\}\})")
_DISAMBIGUATION = {"hndis", "geodis", "surname", "given name", "set index article", "sia"}
_LISTS = ("List of ", "Lists of ", "Index of ", "Outline of ")
# Debris of dropped templates and references: "()", "(; born", "word ,".
_LEFTOVERS = re.compile(r" ?\(\s*[;,:]*\s*\)|(?<=\()[\s;,]+| (?=[,.;:](?:\s|$))")
_QUALIFIER = re.compile(r" \([^()]*\)$")
MINIMUM_WORDS = 4

# At each opener without a closer the parser reads to the end and backtracks, which takes quadratic time.
_PAIRS = (
    (re.compile(r"\{\{|\}\}"), "{{"),
    (re.compile(r"\[\[|\]\]"), "[["),
    (re.compile(r"\{\||\|\}"), "{|"),
    (re.compile(r"\[(?=https?:|//)|\]"), "["),
)
_TAG = re.compile(r"<(/?)([a-z]{1,20})\b[^<>]{0,500}?(/?)>", re.IGNORECASE)
_NEVER_CLOSED = {"br", "hr", "li", "p", "dd", "dt", "wbr", "tr", "td", "th"}
_TANGLE_LIMIT = 50_000_000  # unclosed openers times characters: a few seconds of parsing


def normalize_title(title: str) -> str:
    """Normalize a page title as MediaWiki does: no fragment, spaces for underscores, first letter capitalized."""
    title = " ".join(title.partition("#")[0].replace("_", " ").split())
    return title[:1].upper() + title[1:]


def is_disambiguation(title: str, wikitext: str) -> bool:
    """Tell whether a page only lists the possible meanings of its title."""
    if title.endswith("(disambiguation)") or "__DISAMBIG__" in wikitext:
        return True
    names = (match.group(1).lower() for match in _TEMPLATE_NAME.finditer(wikitext))
    return any("disambig" in name or name in _DISAMBIGUATION for name in names)


def in_another_namespace(title: str) -> bool:
    """Tell whether a title begins with the English name of a namespace other than that of articles."""
    prefix = _PREFIX.match(title)
    return prefix is not None and prefix.group(1).strip().lower().removesuffix(" talk") in _LINKED_NAMESPACES


def is_list(title: str) -> bool:
    """Tell by its title whether a page is a list of links."""
    return title.startswith(_LISTS)


def too_tangled(wikitext: str) -> bool:
    """Tell whether so much markup is unclosed that parsing the page would take minutes."""
    wikitext = _COMMENT.sub("", wikitext)
    for pattern, opener in _PAIRS:
        open_now = 0
        for match in pattern.finditer(wikitext):
            open_now = open_now + 1 if match.group() == opener else max(0, open_now - 1)
        if open_now * len(wikitext) > _TANGLE_LIMIT:
            return True
    open_tags: Counter[str] = Counter()
    for match in _TAG.finditer(wikitext):
        closing, name, single = match.group(1), match.group(2).lower(), match.group(3)
        if closing:
            open_tags[name] = max(0, open_tags[name] - 1)
        elif not single and name not in _NEVER_CLOSED:
            open_tags[name] += 1
    return open_tags.total() * len(wikitext) > _TANGLE_LIMIT


class _Paragraphs:
    """Collects text with normalized spaces and splits it into paragraphs at line breaks.

    Args:
        title: the page's title; its first occurrence in bold becomes a mention of the page's own subject.
        counts: receives the number of links and of what is dropped.

    Attributes:
        done: the finished paragraphs.
    """

    def __init__(self, title: str, counts: Counter[str]) -> None:
        self.done: list[Document] = []
        self._title, self._counts = title, counts
        self._text, self._mentions = "", list[Mention]()

    def add(self, text: str) -> None:
        """Add plain text."""
        for index, line in enumerate(text.split("\n")):
            if index:
                self.cut()
            line = re.sub(r"\s+", " ", line)
            if not self._text or self._text.endswith(" "):
                line = line.lstrip(" ")
            self._text += line

    def link(self, anchor: str, title: str) -> None:
        """Add a link's anchor text as a mention of the linked page."""
        self.add(" " if anchor[:1].isspace() else "")
        start = len(self._text)
        self.add(anchor.replace("\n", " "))
        end = len(self._text.rstrip())
        if end > start and title:
            self._mentions.append(Mention(start, end, title))
            self._counts["links found"] += 1

    def cut(self) -> None:
        """End the current paragraph; drop it if it is too short."""
        text = self._text.rstrip()
        words = len(text.split())
        if words >= MINIMUM_WORDS:
            self.done.append(_without_leftovers(text, self._mentions))
        elif words:
            self._counts["paragraphs dropped: too short"] += 1
            self._counts["links dropped: in a short paragraph"] += len(self._mentions)
        self._text, self._mentions = "", []

    def add_after_link(self, text: str) -> None:
        """Add text that follows a link: lower-case letters right after it belong to the anchor, as in `[[bus]]es`."""
        trail = len(text) - len(text.lstrip(string.ascii_lowercase))
        if trail and self._mentions and self._mentions[-1].end == len(self._text):
            self._mentions[-1] = self._mentions[-1]._replace(end=len(self._text) + trail)
        self.add(text)

    def bold(self, contents: Wikicode) -> None:
        """Add bold text; the first on a page is a mention of its subject if it shares a word with the title."""
        start, links = len(self._text), len(self._mentions)
        before = len(self.done)
        _collect(contents, self)
        if not self._title or before or len(self.done) != before or len(self._mentions) != links:
            return
        end = len(self._text.rstrip())
        words = set(_QUALIFIER.sub("", self._title).casefold().split())
        if words & set(self._text[start:end].casefold().split()):
            self._mentions.append(Mention(start, end, self._title))
            self._counts["subjects found"] += 1
            self._title = ""


def paragraphs_of(wikitext: str, title: str = "", counts: Counter[str] | None = None) -> list[Document]:
    """Convert an article to plain paragraphs with its links; a mention's target is the linked title, normalized.

    Templates that stand for words in a sentence (units, foreign words, dates) are spelled out. Other templates, tables,
    references, files and closing sections (references, external links ...) are dropped, and so are paragraphs of fewer
    than `MINIMUM_WORDS` words.

    Args:
        wikitext: source of the page.
        title: normalized title of the page; its first occurrence in bold becomes a mention too.
        counts: receives the number of links and of what is dropped.
    """
    paragraphs = _Paragraphs(title, Counter() if counts is None else counts)
    # Removed first, because references make up half of an article and parsing them would be wasted.
    wikitext = _REFERENCE.sub("", _COMMENT.sub("", wikitext))
    _collect(mwparserfromhell.parse(wikitext), paragraphs)
    paragraphs.cut()
    return paragraphs.done


def _without_leftovers(text: str, mentions: list[Mention]) -> Document:
    """Remove the debris of dropped markup, and shift mentions accordingly."""
    cuts = [match.span() for match in _LEFTOVERS.finditer(text)]
    if not cuts:
        return Document(text, mentions)
    starts = [start for start, _ in cuts]
    gone = [0]
    for start, end in cuts:
        gone.append(gone[-1] + end - start)

    def moved(offset: int) -> int:
        index = bisect_right(starts, offset - 1)  # cuts that begin before `offset`
        inside = max(0, cuts[index - 1][1] - offset) if index else 0
        return offset - gone[index] + inside

    kept = [Mention(moved(start), moved(end), target) for start, end, target in mentions]
    text = _LEFTOVERS.sub("", text)
    return Document(text, [mention for mention in kept if mention.start < mention.end])


def _collect(code: Wikicode, paragraphs: _Paragraphs) -> None:
    """Add the visible text of parsed wikitext to the paragraphs."""
    skipped_level = 0  # level of the heading whose section is being skipped
    previous = None
    for node in code.nodes:
        after_link, previous = isinstance(previous, nodes.Wikilink), node
        if isinstance(node, nodes.Heading):
            paragraphs.cut()
            if not skipped_level or node.level <= skipped_level:
                closing = node.title.strip_code().strip().lower() in _SKIPPED_SECTIONS
                skipped_level = node.level if closing else 0
        elif skipped_level or isinstance(node, (nodes.Comment, nodes.Argument)):
            continue
        elif isinstance(node, nodes.Text):
            (paragraphs.add_after_link if after_link else paragraphs.add)(node.value)
        elif isinstance(node, nodes.Wikilink):
            _collect_link(node, paragraphs)
        elif isinstance(node, nodes.Template):
            part = visible_part(node)
            if isinstance(part, Wikicode):
                _collect(part, paragraphs)
            else:
                paragraphs.add(part)
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
        if name == "b":
            paragraphs.bold(tag.contents)
        else:
            _collect(tag.contents, paragraphs)


def _collect_link(link: nodes.Wikilink, paragraphs: _Paragraphs) -> None:
    target = str(link.title).strip()
    prefix = _PREFIX.match(target)
    namespace = prefix.group(1).strip() if prefix else ""
    if namespace and (namespace.lower() in _LINKED_NAMESPACES or _LANGUAGE.match(namespace)):
        if target.startswith(":") and link.text:  # the text of a visible link to another namespace or wiki is prose
            paragraphs.add(link.text.strip_code())
        return
    anchor = link.text.strip_code() if link.text is not None else target.lstrip(":")
    paragraphs.link(anchor, normalize_title(target))
