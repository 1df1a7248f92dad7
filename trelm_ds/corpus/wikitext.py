"""Conversion of wikitext to plain paragraphs with links at character offsets (parser: mwparserfromhell)."""

from __future__ import annotations

import html
import re
from collections import Counter
from urllib.parse import unquote

import mwparserfromhell
from mwparserfromhell import nodes
from mwparserfromhell.wikicode import Wikicode

from trelm_ds.corpus.documents import Document
from trelm_ds.corpus.markup import DATA_TAGS, prose_source
from trelm_ds.corpus.measures import superscript
from trelm_ds.corpus.paragraphs import Line, Paragraphs
from trelm_ds.corpus.site import ENGLISH, Site
from trelm_ds.corpus.templates import name_of, visible_part

# Tags whose content is not prose.
_SKIPPED_TAGS = {"ref", "references", "table", *DATA_TAGS}
_ABOVE = {"rt", "rp"}  # the reading of <ruby>, which stands above the line
_LINE_TAGS = {
    "br", "li", "dd", "dt", "p", "div", "hr", "tr", "td", "th", "blockquote", "center", "ul", "ol", "dl", "poem",
    "caption", "h1", "h2", "h3", "h4", "h5", "h6",
}  # fmt: skip
_INLINE_TAGS = {
    "b", "i", "u", "s", "em", "strong", "small", "big", "sub", "sup", "span", "font", "code", "tt", "kbd", "samp",
    "var", "abbr", "cite", "q", "del", "ins", "strike", "nowiki", "bdi", "bdo", "ruby", "rb", "wbr", "dfn",
    "mark", "data", "time", "noinclude", "onlyinclude", "section", "translate",
}  # fmt: skip
_SKIPPED_SECTIONS = {
    "references", "external links", "see also", "further reading", "notes", "bibliography", "sources", "footnotes",
    "citations", "notes and references", "works cited",
}  # fmt: skip
_STRAY_TAG = re.compile(r"</?([A-Za-z][A-Za-z0-9]{0,20})\b[^<>\n]{0,500}>")
_APOSTROPHE = re.compile(r"(?<=\w)'''(?=s\b)")  # the end of italics and an apostrophe: ''Foo'''s
_QUOTES = re.compile(r"'{2,}+")
_SWITCH = re.compile(
    r"__(?:(?i:NOTOC|NOGALLERY|FORCETOC|TOC|NOEDITSECTION)|NEWSECTIONLINK|NONEWSECTIONLINK|HIDDENCAT|ARCHIVEDTALK|NOTALK"
    r"|EXPECTUNUSEDCATEGORY|EXPECTUNUSEDTEMPLATE|EXPECTWITHOUTSCANS|NOCONTENTCONVERT|NOCC|NOTITLECONVERT|NOTC|START|END"
    r"|INDEX|NOINDEX|STATICREDIRECT|NOGLOBAL|DISAMBIG)__"
)
_FOREIGN_SWITCH = re.compile(r"__[^\W\d_]{1,40}(?:_[^\W\d_]{1,40}){0,6}__")


def paragraphs_of(
    wikitext: str,
    title: str = "",
    counts: Counter[str] | None = None,
    site: Site = ENGLISH,
    left_out: Counter[str] | None = None,
) -> list[Document]:
    """Convert an article to plain paragraphs with its links; a mention's target is the linked title, normalized.

    Templates that stand for words in a sentence (units, foreign words, dates) are spelled out. Other templates, tables,
    references, files and closing sections (references, external links ...) are dropped, and so are paragraphs of fewer
    than `MINIMUM_WORDS` words.

    Args:
        wikitext: source of the page.
        title: normalized title of the page; its first occurrence in bold becomes a mention too.
        counts: receives the number of links and of what is dropped.
        site: the wiki's names.
        left_out: receives the names of the templates that are dropped.
    """
    paragraphs = Paragraphs(title, Counter() if counts is None else counts, site.is_english)
    # Much is removed first, because references make up half of an article and parsing them would be wasted.
    code = mwparserfromhell.parse(prose_source(wikitext))
    _Converter(site, Counter() if left_out is None else left_out).collect(code, paragraphs)
    paragraphs.cut()
    return paragraphs.done


class _Converter:
    """Adds the visible text of parsed wikitext to paragraphs, or to the line that is the text of a link."""

    def __init__(self, site: Site, left_out: Counter[str]) -> None:
        self.site, self.left_out = site, left_out

    def collect(self, code: Wikicode, out: Line) -> None:
        """Add the visible text of all nodes."""
        skipped_level = 0  # level of the heading whose section is being skipped
        previous = None
        for node in code.nodes:
            after_link, previous = isinstance(previous, nodes.Wikilink), node
            if isinstance(node, nodes.Heading):
                out.cut()
                if not skipped_level or node.level <= skipped_level:
                    closing = node.title.strip_code().strip().lower() in _SKIPPED_SECTIONS
                    skipped_level = node.level if closing else 0
            elif skipped_level or isinstance(node, nodes.Comment):
                continue
            elif isinstance(node, nodes.Text):
                text = self._plain(node.value)
                (out.add_after_link if after_link else out.add)(text)
            elif isinstance(node, nodes.Wikilink):
                self._link(node, out)
            elif isinstance(node, nodes.Template):
                self._template(node, out)
            elif isinstance(node, nodes.HTMLEntity):
                character = node.normalize() or ""
                out.add("" if "\ud800" <= character <= "\udfff" else character)
            elif isinstance(node, nodes.Tag):
                self._tag(node, out)
            elif isinstance(node, nodes.ExternalLink) and node.title:
                self.collect(node.title, out)
            elif isinstance(node, nodes.Argument) and node.default is not None:  # what a page itself shows of it
                self.collect(node.default, out)
            else:
                out.separate()

    def text(self, code: Wikicode) -> str:
        """Return the visible text of wikitext on one line."""
        if len(code.nodes) == 1 and isinstance(code.nodes[0], nodes.Text):  # as in most links
            return self._plain(code.nodes[0].value).replace("\n", " ")
        line = Line()
        self.collect(code, line)
        return line.text

    def _plain(self, text: str) -> str:
        """Remove from text what the parser leaves of markup: switches, unclosed quotes and tags."""
        if "__" in text:
            text = _SWITCH.sub("", text)
            if not self.site.is_english:
                text = _FOREIGN_SWITCH.sub(lambda match: "" if match.group().isupper() else match.group(), text)
        if "''" in text:
            text = _QUOTES.sub("", _APOSTROPHE.sub("'", text))
        if "<" in text:
            text = _STRAY_TAG.sub(_without_tag, text)
        return text

    def _template(self, template: nodes.Template, out: Line) -> None:
        part = visible_part(template, self.text)
        if isinstance(part, Wikicode):
            self.collect(part, out)
        elif part is not None:
            mixed = part[:1].isdecimal() and "/" in part and out.ends_with_digit  # 5{{frac|1|2}} is no 51/2
            out.add(f" {part}" if mixed else part)
        else:
            self.left_out[name_of(template)] += 1
            out.separate()

    def _tag(self, tag: nodes.Tag, out: Line) -> None:
        name = str(tag.tag).strip().lower()
        if name in _SKIPPED_TAGS or (tag.attributes and _is_hidden(tag)):
            out.separate()
            return
        if name in _LINE_TAGS:
            out.cut()
        if tag.contents is None or name in _ABOVE:
            return
        if name == "nowiki":
            out.add(html.unescape(str(tag.contents)))
        elif name == "b":
            before = out.begin_bold()
            self.collect(tag.contents, out)
            out.end_bold(before)
        elif name == "sup" and all(isinstance(node, (nodes.Text, nodes.HTMLEntity)) for node in tag.contents.nodes):
            out.add(superscript(self.text(tag.contents).strip()))
        else:
            self.collect(tag.contents, out)
        if name in _LINE_TAGS and not tag.wiki_markup and not tag.self_closing:
            out.cut()

    def _link(self, link: nodes.Wikilink, out: Line) -> None:
        target = str(link.title).strip()
        kind = self.site.link_kind(target)
        if kind == "hidden":
            out.separate()
        elif kind == "article":
            self._mention(link, self.site.title(target), out)
        elif link.text is not None:
            self.collect(link.text, out)
        else:
            out.add(self.text(link.title).strip().removeprefix(":"))

    def _mention(self, link: nodes.Wikilink, title: str, out: Line) -> None:
        before = out.begin_link()
        if link.text is not None and link.text.nodes:
            self.collect(link.text, out)
        else:
            out.add(unquote(self.text(link.title).strip().removeprefix(":")))
        out.end_link(before, title)


def _without_tag(match: re.Match[str]) -> str:
    """Return what stands for a tag that is not closed, or was not opened."""
    name = match.group(1).lower()
    if name in _LINE_TAGS:
        return "\n"
    if name in _SKIPPED_TAGS:
        return " "
    return "" if name in _INLINE_TAGS else match.group()


def _is_hidden(tag: nodes.Tag) -> bool:
    style = "".join(str(attribute) for attribute in tag.attributes).replace(" ", "").lower()
    return "display:none" in style
