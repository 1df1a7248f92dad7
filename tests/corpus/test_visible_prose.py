"""No word that a page shows is lost, added or glued: generated pages against a slow reference that parses nothing.

A generated piece knows both its wikitext and what a reader sees of it, with `GAP` for what is dropped and `MIXED`
before a fraction, which keeps apart from a number: 5 1/2.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import NamedTuple

import pytest

from trelm_ds.corpus.wikitext import paragraphs_of

GAP, MIXED = "\0", "\1"


class Piece(NamedTuple):
    source: str
    shown: str
    links: tuple[tuple[str, str], ...] = ()  # (shown text, title)


class Generator:
    """Draws pieces of pages; every word is used once, so that a lost or moved one is seen."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.used = 0

    def word(self) -> str:
        self.used += 1
        letters, number = "", self.used
        while number:
            number, letter = divmod(number, 26)
            letters = chr(ord("a") + letter) + letters
        return f"q{letters}z"

    def words(self) -> str:
        return " ".join(self.word() for _ in range(self.draw.randint(1, 3)))

    def inline(self, depth: int, linking: bool = True, first: str = "") -> Piece:
        """A few pieces side by side, with or without a space between them."""
        pieces = [Piece(first, first)] if first else []
        for _ in range(self.draw.randint(1, 6)):
            pieces.append(self.piece(depth, linking))
            quoted = pieces[-1].source.endswith("'")  # four quotes in a row would mean something else
            between = self.draw.choice([" ", " ", ", ", ". ", "-"] + ["", ""] * (not quoted))
            pieces.append(Piece(between, between))
        return joined(pieces)

    def piece(self, depth: int, linking: bool) -> Piece:
        kinds: list[Callable[[int], Piece]] = [self.plain, self.spelled, self.dropped, self.literal]
        if depth:
            kinds += [self.tag, self.template, self.dropped_around] + (
                [self.link, self.elsewhere, self.outside] if linking else []
            )
        return self.draw.choice(kinds)(depth)

    def plain(self, _: int) -> Piece:
        words = self.words()
        return Piece(self.draw.choice(["{}", "{}", "''{}''", "<b>{}</b>", "<nowiki>{}</nowiki>"]).format(words), words)

    def spelled(self, _: int) -> Piece:
        word, number = self.word(), str(self.draw.randint(2, 999))
        return self.draw.choice(
            [
                Piece("{{en dash}}", "–"), Piece("{{snd}}", " – "), Piece("{{spaced en dash}}", " – "),
                Piece("{{'s}}", "'s"),
                Piece("{{nbsp}}", " "), Piece("&nbsp;", " "), Piece("&eacute;", "é"), Piece("&amp;", "&"),
                Piece(f"{{{{formatnum:{number}}}}}", number),
                Piece(f"{{{{formatnum:7{number:0>3}}}}}", f"7,{number:0>3}"),
                Piece(f"{{{{convert|{number}|km|mi|0}}}}", f"{number} km"),
                Piece(f"{{{{convert|{number}|to|{number}|kg}}}}", f"{number} to {number} kg"),
                Piece(f"{{{{convert|5|ft|{number}|in|m}}}}", f"5 ft {number} in"),
                Piece(f"{{{{sub|{number}}}}}", number), Piece(f"<sub>{number}</sub>", number),
                Piece("10{{sup|6}}", "10⁶"),
                Piece("m<sup>2</sup>", "m²"), Piece("{{chem2|CO2}}", "CO2"),
                Piece(f"{{{{US$|{number}}}}}", f"US${number}"),
                Piece(f"{{{{transliteration|ja|Hepburn|{word}}}}}", word), Piece(f"{{{{transl|ru|{word}}}}}", word),
                Piece(f"{{{{frac|{number}}}}}", f"{MIXED}1/{number}"), Piece(f"{{{{circa|{number}}}}}", f"c. {number}"),
            ]
        )  # fmt: skip

    def dropped(self, _: int) -> Piece:
        word = self.word()
        source = self.draw.choice(
            [
                "{{citation needed|date=May 2020}}", f"{{{{unheard of|{word}|a={word}}}}}", f"<ref>{word} {word}</ref>",
                f'<ref name="{word}"/>', f"<ref name=x>{word}</ref><ref name=y />",
                f"<math>{word}^2 \\{{{{|</math>",
                f'<graph>{{"{word}": [[1, 2]]}}</graph>', f"[[File:{word}.jpg|thumb|{word} [[{word}]]]]",
                f"[[Category:{word}|{word}]]", f"[[de:{word}]]", f"[[Bild:{word}.png|{word}]]",
                f"<gallery>\n{word}\n</gallery>",
                f"<span style='display:none'>{word}</span>", f"{{{{unheard of|\n| {word}\n}}}}",
            ]
        )  # fmt: skip
        return Piece(source, GAP)

    def literal(self, _: int) -> Piece:
        """What leaves no trace: a reader sees its neighbours side by side."""
        return Piece(self.draw.choice([f"<!-- {self.word()} -->", "__NOTOC__", "__NOINDEX__"]), "")

    def tag(self, depth: int) -> Piece:
        inside = self.inline(depth - 1)
        name = self.draw.choice(["small", "span", "i", "u", "big", "s", "noinclude"])
        return Piece(f"<{name}>{inside.source}</{name}>", inside.shown, inside.links)

    def template(self, depth: int) -> Piece:
        inside = self.inline(depth - 1)
        form = self.draw.choice(
            ["{{nowrap|%s}}", "{{lang|de|%s}}", "{{lang-fr|%s}}", "{{langx|fr|%s}}", "{{Small|%s}}", "{{sic|%s}}"]
        )
        return Piece(form.replace("%s", inside.source), inside.shown, inside.links)

    def dropped_around(self, depth: int) -> Piece:
        return Piece(f"{{{{efn|{self.inline(depth - 1).source}}}}}", GAP)

    def link(self, depth: int) -> Piece:
        title = self.word().capitalize()
        spelling = self.draw.choice([title, title.lower(), f"{title}#x", f":{title}", f"_{title}", f"\u200e{title}"])
        if self.draw.random() < 0.2:
            return Piece(f"[[{title}]]", title, ((title, title),))
        inside = self.inline(depth - 1, linking=False)
        if not visible(inside.shown):
            inside = joined([inside, self.plain(0)])  # a link without a text would show its target
        return Piece(f"[[{spelling}|{inside.source}]]", inside.shown, ((inside.shown, title),))

    def elsewhere(self, depth: int) -> Piece:
        inside = self.inline(depth - 1, linking=False)
        prefix = self.draw.choice(["wikt", "s", ":Category", "Help", ":de", "Media", "User"])
        return Piece(f"[[{prefix}:x|{inside.source}]]", inside.shown, inside.links)

    def outside(self, depth: int) -> Piece:
        inside = self.inline(depth - 1, linking=False, first=self.word())  # spaces in front of it would not show
        return Piece(f"[https://a.org/{self.word()} {inside.source}]", inside.shown, inside.links)

    def paragraph(self) -> Piece:
        first = " ".join(self.word() for _ in range(4)) + " "
        inside = self.inline(3, first=first)
        return inside._replace(source=self.draw.choice(["", "", "* ", ":", "# ", "== x ==\n"]) + inside.source)

    def table(self) -> str:
        indent, word = self.draw.choice(["", ":", "::", "* "]), self.word()
        head = f"! {word} !! {word}\n|-\n| {word} || {{{{x|{word}}}}} [[{word}]]\n"
        row = f"{head}| style='x' | {word} {word} {word} {word}\n"
        end = self.draw.choice(["|}", "{{end}}", ""])
        return f"{indent}{{| class=x\n{row}{end}"


def joined(pieces: list[Piece]) -> Piece:
    links = tuple(link for piece in pieces for link in piece.links)
    return Piece("".join(piece.source for piece in pieces), "".join(piece.shown for piece in pieces), links)


def visible(shown: str) -> list[str]:
    """The reference: the words of what is shown, where a gap keeps two words apart."""
    text = ""
    for place, character in enumerate(shown):
        if character == MIXED:
            text += " " if text[-1:].isdecimal() else ""
            continue
        if character != GAP:
            text += character
            continue
        rest = shown[place:].replace(GAP, "").replace(MIXED, "")
        if text[-1:].isalnum() and rest[:1].isalnum():
            text += " "
    return re.findall(r"\w+", text)


@pytest.mark.parametrize("seed", range(40))
def test_every_visible_word_is_there_once_and_alone(seed: int) -> None:
    generator = Generator(seed)
    paragraphs = [generator.paragraph() for _ in range(12)]
    parts = ["{{Short description|x}}\n{{Infobox x\n| a = [[b]]\n| c = {|\n| d\n|}\n}}"]
    for paragraph in paragraphs:
        parts.append(paragraph.source)
        if generator.draw.random() < 0.3:
            parts.append(generator.table())
    closing = f"== References ==\n{generator.inline(3).source}"
    found = paragraphs_of("\n".join([*parts, closing]), "No Title")
    words = [word for paragraph in found for word in re.findall(r"\w+", paragraph.text)]
    assert words == [word for paragraph in paragraphs for word in visible(paragraph.shown)]
    expected = [link for paragraph in paragraphs for link in paragraph.links if visible(link[0])]
    mentions = [(one.text[start:end], target) for one in found for start, end, target in one.mentions]
    mentions = [(anchor, target) for anchor, target in mentions if re.search(r"\w", anchor)]
    assert [target for _, target in mentions] == [title for _, title in expected]
    for (anchor, _), (shown, _) in zip(mentions, expected, strict=True):
        assert re.fullmatch("".join(visible(shown)) + "[a-z]*", "".join(re.findall(r"\w+", anchor)))


@pytest.mark.parametrize("seed", range(40))
def test_damaged_pages_keep_the_offsets_of_their_mentions(seed: int) -> None:
    generator = Generator(seed)
    draw = generator.draw
    page = "\n".join(generator.paragraph().source + "\n" + generator.table() for _ in range(4))
    debris = ["[[", "]]", "{{", "}}", "|", "{|", "|}", "<ref>", "</ref>", "<", "''", "'''", "\n", "=="]
    debris += ["<nowiki>", "<!--", "="]
    for _ in range(draw.choice([1, 3, 10, 40])):
        place = draw.randrange(len(page))
        middle = draw.choice(["", draw.choice(debris), page[place - 20 : place]])
        page = page[:place] + middle + page[place + draw.choice([0, 1, 2, 5, 30]) :]
    for paragraph in paragraphs_of(page, "Qbz qcz"):
        assert paragraph.text == " ".join(paragraph.text.split())
        before = 0
        for start, end, title in paragraph.mentions:
            assert before <= start < end <= len(paragraph.text)
            assert title
            assert paragraph.text[start:end] == paragraph.text[start:end].strip()
            before = end
