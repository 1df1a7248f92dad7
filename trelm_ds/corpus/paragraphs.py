"""Plain text in the making: spaces, paragraphs, and the offsets of mentions."""

from __future__ import annotations

import re
import string
from bisect import bisect_right
from collections import Counter

from trelm_ds.corpus.documents import Document, Mention

# Debris of dropped templates and references: "()", "(, )", "(; born", "born; )", "a; ; b", "word ,". What has no space
# in it is not theirs: "printf()", "for (;;)", "(1,)".
_LEFTOVERS = re.compile(
    r" \(\)|(?<!\w)\(\)| ?\([;,:]*\s[\s;,:]*\)|(?<=\()[\s;,]++(?!\))|(?<![\s;,])[\s;,]*+(?<=\s)(?=\))"
    r"|[;,] (?=[;,])| (?=[,.;:](?:\s|$))"
)
_QUALIFIER = re.compile(r" \([^()]*\)$")
_SPACES = re.compile(r"\s+")
_UNSEEN = str.maketrans("", "", "\u00ad\u200b\u2060\ufeff")  # where a word may be broken, or may not
MINIMUM_WORDS = 4


class Line:
    """Collects text with normalized spaces on one line, without mentions: the text of a link."""

    def __init__(self) -> None:
        self._pieces = list[str]()  # joined at the end, because appending to a long string takes quadratic time
        self._length, self._last = 0, ""
        self._gap = False

    @property
    def text(self) -> str:
        """What was collected."""
        return "".join(self._pieces)

    def add(self, text: str) -> None:
        """Add plain text."""
        self._put(text)

    def _put(self, text: str) -> int:
        """Add text to the line, and a space where something was dropped between two words.

        Returns:
            the number of spaces at its start.
        """
        if not text.isascii():
            text = text.translate(_UNSEEN)
        if not text:
            return 0
        text = _SPACES.sub(" ", text)
        if self._gap and self._last.isalnum() and text[0].isalnum():
            text = " " + text
        self._gap = False
        if self._last in ("", " "):
            text = text.lstrip(" ")
        if text:
            self._pieces.append(text)
            self._length, self._last = self._length + len(text), text[-1]
        return int(text.startswith(" "))

    @property
    def ends_with_digit(self) -> bool:
        """Whether a digit is the last character so far."""
        return self._last.isdecimal()

    @property
    def _end(self) -> int:
        """The length of the text without a space at its end."""
        return self._length - (self._last == " ")

    def separate(self) -> None:
        """Note that something was dropped here."""
        self._gap = True

    def add_after_link(self, text: str) -> None:
        """Add text that follows a link."""
        self.add(text)

    def begin_link(self) -> int:
        """Return the state before the text of a link, for `end_link`."""
        return 0

    def end_link(self, before: int, title: str) -> None:
        """End the text of a link."""

    def begin_bold(self) -> tuple[int, ...]:
        """Return the state before bold text, for `end_bold`."""
        return ()

    def end_bold(self, before: tuple[int, ...]) -> None:
        """End bold text."""

    def cut(self) -> None:
        """End a paragraph: here only a space."""
        self._put(" ")


class Paragraphs(Line):
    """Collects text with normalized spaces and splits it into paragraphs at line breaks.

    Args:
        title: the page's title; its first occurrence in bold becomes a mention of the page's own subject.
        counts: receives the number of links and of what is dropped.
        ascii_trails: whether only the letters a to z belong to a link that they follow, as in English.

    Attributes:
        done: the finished paragraphs.
    """

    def __init__(self, title: str, counts: Counter[str], ascii_trails: bool = True) -> None:
        super().__init__()
        self.done: list[Document] = []
        self._title, self._counts, self._ascii_trails = title, counts, ascii_trails
        self._mentions = list[Mention]()
        self._links = 0  # how many links the current text is in

    def add(self, text: str) -> None:
        """Add plain text; every line outside a link is a paragraph."""
        if self._links:
            self._put(text)
            return
        first, *others = text.split("\n")
        self._put(first)
        for line in others:
            self.cut()
            self._put(line)

    def begin_link(self) -> int:
        """Begin the text of a link; return the number of pieces before it."""
        self._links += 1
        return len(self._pieces)

    def end_link(self, before: int, title: str) -> None:
        """End the text of a link, a mention of the linked page; without a title, or in another link, only text."""
        self._links -= 1
        if title and not self._links:
            self._mention(before, title, "links found")

    def _mention(self, before: int, title: str, kind: str) -> None:
        """Make a mention of all pieces but the first ones."""
        anchor = "".join(self._pieces[before:])
        start = self._length - len(anchor.lstrip())
        if self._end > start:
            self._mentions.append(Mention(start, self._end, title))
            self._counts[kind] += 1

    def cut(self) -> None:
        """End the current paragraph, unless it is in the text of a link; drop it if it is too short."""
        if self._links:
            self._put(" ")
            return
        text = self.text.rstrip()
        words = len(text.split())
        if words >= MINIMUM_WORDS:
            self.done.append(_without_leftovers(text, self._mentions))
        elif words:
            self._counts["paragraphs dropped: too short"] += 1
            self._counts["links dropped: in a short paragraph"] += len(self._mentions)
        self._pieces, self._length, self._last, self._gap, self._mentions = [], 0, "", False, []

    def add_after_link(self, text: str) -> None:
        """Add text that follows a link: lower-case letters right after it belong to the anchor, as in `[[bus]]es`."""
        joined = not self._gap and self._mentions and self._mentions[-1].end == self._length
        if joined and (trail := self._trail(text)):
            self._mentions[-1] = self._mentions[-1]._replace(end=self._length + trail)
        self.add(text)

    def _trail(self, text: str) -> int:
        """Return how many letters belong to the link before them."""
        if self._ascii_trails:
            return len(text) - len(text.lstrip(string.ascii_lowercase))
        return next((place for place, letter in enumerate(text) if not letter.islower()), len(text))

    def begin_bold(self) -> tuple[int, ...]:
        """Return how much there is before bold text."""
        return len(self._pieces), len(self._mentions), len(self.done)

    def end_bold(self, before: tuple[int, ...]) -> None:
        """End bold text; the first on a page is a mention of its subject if it shares a word with the title."""
        pieces, links, paragraphs = before
        if not self._title or paragraphs or self.done or self._links or len(self._mentions) != links:
            return
        bold = "".join(self._pieces[pieces:])
        words = set(_QUALIFIER.sub("", self._title).casefold().split())
        if words & set(bold.casefold().split()):
            self._mention(pieces, self._title, "subjects found")
            self._title = ""


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
