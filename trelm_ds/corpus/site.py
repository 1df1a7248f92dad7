"""A wiki's own rules for names: its namespaces, from the dump's <siteinfo>, and how it writes titles."""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote

LinkKind = Literal["article", "hidden", "shown"]

# MediaWiki knows the English names on every wiki.
_HIDDEN = frozenset({"file", "image", "category"})
_SUBJECTS = {
    "user", "wikipedia", "project", "wp", "mediawiki", "template", "help", "portal", "draft", "module", "book",
    "timedtext", "education program", "gadget", "gadget definition", "topic",
}  # fmt: skip
_TALKS = {"talk", "wt", "file talk", "image talk", "category talk"} | {f"{name} talk" for name in _SUBJECTS}
_SISTERS = {
    "wikt", "wiktionary", "s", "wikisource", "c", "commons", "b", "wikibooks", "q", "wikiquote", "n", "wikinews", "v",
    "wikiversity", "voy", "wikivoyage", "d", "wikidata", "m", "meta", "mw", "mediawikiwiki", "species", "wikispecies",
    "w", "foundation", "wmf", "phab", "toollabs", "doi", "iarchive", "mail", "bugzilla", "incubator",
}  # fmt: skip
_SHOWN = frozenset({"media", "special"} | _SUBJECTS | _TALKS | _SISTERS)
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z]+){0,2}$|simple$")
# A wiki's older names for its files (German "Bild") are in no dump, but nothing else ends like this.
_FILE_NAME = re.compile(
    r"\.(?:jpe?g|png|gif|svg|tiff?|webp|xcf|og[agv]|opus|webm|mp[34]|mpe?g|wav|flac|midi?|pdf|djvu|stl)$", re.IGNORECASE
)
_FILES, _CATEGORIES, _ARTICLES = 6, 14, 0

_WIKI_LANGUAGE = re.compile(r"<mediawiki\b[^>]*?\sxml:lang=[\"']([\w-]+)")
_NAMESPACE = re.compile(r"<namespace\s([^>]*?)(?:/>|>([^<]*)</namespace>)")
_KEY = re.compile(r"\bkey=[\"'](-?\d+)[\"']")
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_PERCENT = re.compile(r"%[0-9a-fA-F]{2}")
_DIRECTION = re.compile("[\u200e\u200f\u202a-\u202e]")
_NO_TITLE = re.compile(r"[<>\[\]{}|\x00-\x1f\x7f\ufffd]")


@dataclass(frozen=True)
class Site:
    """What a dump says about its wiki.

    Attributes:
        language: code of the content's language.
        first_letter: whether titles begin with a capital letter (they do on every Wikipedia).
        hidden: lower-case names of the namespaces whose links show no text: files and categories.
        shown: lower-case names of other namespaces and of sister projects.
    """

    language: str = "en"
    first_letter: bool = True
    hidden: frozenset[str] = field(default=_HIDDEN)
    shown: frozenset[str] = field(default=_SHOWN)

    @property
    def is_english(self) -> bool:
        """Whether the content is in English."""
        return self.language.partition("-")[0] in ("en", "simple")

    def key(self) -> list[object]:
        """Return everything as JSON values, for the keys of artifacts."""
        return [self.language, self.first_letter, sorted(self.hidden), sorted(self.shown)]

    def link_kind(self, target: str) -> LinkKind:
        """Tell what a link shows: its text as a mention of an article, nothing, or only its text."""
        name, colon, rest = target.strip().removeprefix(":").partition(":")
        if not colon:
            return "article"
        written = " ".join(name.replace("_", " ").split())
        name = written.lower()
        if name in self.shown and (len(name) > 1 or name == written):  # "S: A Novel" is not on Wikisource
            return "shown"
        if name in self.hidden or _LANGUAGE.match(written) or _FILE_NAME.search(rest.strip()):
            return "shown" if target.strip().startswith(":") else "hidden"
        return "article"

    def title(self, text: str) -> str:
        """Normalize a title as MediaWiki does; "" if it cannot be one.

        Entities and percent escapes are decoded, direction marks and the fragment are removed, underscores are spaces,
        and the first letter is a capital one.
        """
        if "&" in text:
            text = _ENTITY.sub(lambda match: html.unescape(match.group()), text)
        if "%" in text and _PERCENT.search(text):
            text = unquote(text)
        if not text.isascii():
            text = unicodedata.normalize("NFC", _DIRECTION.sub("", text))
        text = " ".join(text.partition("#")[0].replace("_", " ").split()).removeprefix(":").lstrip()
        if _NO_TITLE.search(text):
            return ""
        capital = text[:1].upper()  # two letters for a few that have no capital: they stay
        return capital + text[1:] if self.first_letter and len(capital) == 1 else text


ENGLISH = Site()


def read_site(head: str) -> Site:
    """Read what stands before the first page of a dump; what is missing is as on English Wikipedia."""
    language = _WIKI_LANGUAGE.search(head)
    first_letter, hidden, shown = True, set(_HIDDEN), set(_SHOWN)
    for match in _NAMESPACE.finditer(head):
        attributes, name = match.group(1), html.unescape(match.group(2) or "")
        key = _KEY.search(attributes)
        number = int(key.group(1)) if key else _ARTICLES
        if number == _ARTICLES:
            first_letter = "case-sensitive" not in attributes
        elif name := " ".join(name.replace("_", " ").split()).lower():
            (hidden if number in (_FILES, _CATEGORIES) else shown).add(name)
    return Site(language.group(1).lower() if language else "en", first_letter, frozenset(hidden), frozenset(shown))
