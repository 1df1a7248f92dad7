"""What is removed from wikitext before it is parsed, because it is no prose or would take the parser minutes."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from itertools import accumulate

# Tags whose content is data, code or formulas, not wikitext.
DATA_TAGS = (
    "math", "chem", "ce", "gallery", "timeline", "syntaxhighlight", "source", "pre", "imagemap", "score", "hiero",
    "templatestyles", "templatedata", "mapframe", "maplink", "graph", "inputbox", "categorytree", "dynamicpagelist",
    "charinsert", "indicator", "phonos", "quiz", "poll", "rss", "includeonly",
)  # fmt: skip
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_REFERENCES = re.compile(r"(?:<ref\b[^<>]*/>|<ref\b[^<>]*>.*?</ref\s*+>)+", re.DOTALL | re.IGNORECASE)
_DATA = re.compile(rf"<(?P<name>{'|'.join(DATA_TAGS)})\b[^<>]*(?:/>|>.*?</(?P=name)\s*+>)", re.DOTALL | re.IGNORECASE)
_FORMULA = re.compile(r"\s*[A-Za-z0-9()\[\]]{1,40}\s*$")  # of a molecule, not of a reaction

# At each opener without a closer the parser reads to the end and backtracks, which takes quadratic time.
_PAIRS = (
    (re.compile(r"\{\{|\}\}"), "{{"),
    (re.compile(r"\[\[|\]\]"), "[["),
    (re.compile(r"\{\||\|\}"), "{|"),
    (re.compile(r"\[(?=https?:|//)|\]"), "["),
)
_TAG = re.compile(r"<(/?)([a-z]{1,20})\b[^<>]{0,500}?(/?)>", re.IGNORECASE)
_NEVER_CLOSED = {"br", "hr", "li", "p", "dd", "dt", "wbr", "tr", "td", "th"}
_ENDLESS_TAG = re.compile(r"<[a-z]{1,20}\s[^<>]*+(?=<|\Z)", re.IGNORECASE)  # attributes, but no ">"
_ENDLESS_COST = 8  # times the time of other openers
_TANGLE_LIMIT = 50_000_000  # unclosed openers times characters: a few seconds of parsing

_LINE_MARKUP = set("*#:;=|!{ -")  # begin something else than prose where they begin a line
_ENDS = {"", *".,;:!?)"}  # end a word themselves
_HAS_TABLE = re.compile(r"^[ \t:*#;]*+(?:\{\||\||!)", re.MULTILINE)
_OPENED = re.compile(r"[ \t:*#;]*+\{\|")
_CLOSED = re.compile(
    r"[ \t:*#;]*+(?:\|\}(?!\})|\{\{\s*+(?:end|s-end|table[ _]end|end[ _]table)\s*+\}\})", re.IGNORECASE
)
_ROW = re.compile(r"\s*+[|!]")
_NESTING = re.compile(r"\{\{|\}\}|\[\[|\]\]")


def without_comments(wikitext: str) -> str:
    """Remove HTML comments."""
    return _COMMENT.sub("", wikitext) if "<!--" in wikitext else wikitext


def prose_source(wikitext: str) -> str:
    """Remove comments, references, data and wiki tables."""
    wikitext = _REFERENCES.sub(_gap, without_comments(wikitext))
    return without_tables(_DATA.sub(_data, wikitext))


def _data(match: re.Match[str]) -> str:
    """Return what stands for data: code inside a sentence is a part of it, as <code> is; so is H2O, as {{chem}} is."""
    opening, _, rest = match.group().partition(">")
    name, content = match["name"].lower(), rest.rpartition("<")[0]
    inline = name in ("syntaxhighlight", "source") and "inline" in opening.split()
    if inline or (name in ("chem", "ce") and _FORMULA.match(content)):
        return f"<nowiki>{content.strip()}</nowiki>"
    return _gap(match)


def _gap(match: re.Match[str]) -> str:
    """Return what stands for a removed piece: what keeps its neighbours apart, or the next one off the line's start."""
    text = match.string
    before, after = text[max(0, match.start() - 1) : match.start()], text[match.end() : match.end() + 1]
    if before in ("", "\n"):
        return "<nowiki/>" if after in _LINE_MARKUP else ""
    return "" if before.isspace() or after.isspace() or after in _ENDS else "<ref/>"


def too_tangled(wikitext: str) -> bool:
    """Tell whether so much markup is unclosed that parsing the page would take minutes."""
    wikitext = without_comments(wikitext)
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
    endless = sum(1 for _ in _ENDLESS_TAG.finditer(wikitext))
    return (open_tags.total() + _ENDLESS_COST * endless) * len(wikitext) > _TANGLE_LIMIT


def without_tables(wikitext: str) -> str:
    """Remove wiki tables, also indented ones, those that a template opens or closes, and those that never end.

    A table that never ends is taken to end with its last row before the next heading or table. A line that
    begins like a row outside a table belongs to one that a template has opened. Tables inside templates stay.
    """
    if not _HAS_TABLE.search(wikitext):
        return wikitext
    lines = wikitext.split("\n")
    opened = list[tuple[int, bool]]()  # lines that open a table which is not closed yet; whether in a template or link
    rows, borders = list[int](), list[int]()  # borders: headings, and lines that open a table
    inside = list[bool]()  # whether a template or link is open at the start of each line
    changes = [0] * (len(lines) + 1)  # by how many tables more each line is covered than the line before
    templates = links = 0
    for number, line in enumerate(lines):
        if line.startswith("=="):
            borders.append(number)
            templates = links = 0  # one that was never closed does not hide the rest of the page
        elif not line.strip():
            links = 0
        inside.append(templates + links > 0)
        if _OPENED.match(line):
            opened.append((number, inside[-1]))
            borders.append(number)
        elif (closed := _CLOSED.match(line)) and (opened or "{{" not in closed.group()):
            first, nested = opened.pop() if opened else (number, inside[-1])
            if not nested:
                templates = links = 0  # what the table has opened, it closes
                _cover(changes, first, number - 1)
                lines[number] = line = line[closed.end() :]
        elif _ROW.match(line) and not inside[-1]:
            rows.append(number)
        templates, links = _nesting(line, templates, links)
    for first, nested in opened:
        if not nested:
            _cover(changes, first, _last_row(first, rows, borders, inside))
    for number in rows:
        if lines[number].lstrip().startswith("|") or _is_head(lines, number):
            _cover(changes, number, _end_of_nested(number, inside))
    return "\n".join(line for line, tables in zip(lines, accumulate(changes), strict=False) if not tables)


def _cover(changes: list[int], first: int, last: int) -> None:
    """Note that a table covers the lines `first` to `last`."""
    changes[first] += 1
    changes[last + 1] -= 1


def _nesting(line: str, templates: int, links: int) -> tuple[int, int]:
    """Return how many templates and links are open after a line."""
    for match in _NESTING.finditer(line):
        found = match.group()
        if found == "{{":
            templates += 1
        elif found == "}}":
            templates = max(0, templates - 1)
        else:
            links = links + 1 if found == "[[" else max(0, links - 1)
    return templates, links


def _last_row(first: int, rows: list[int], borders: list[int], inside: list[bool]) -> int:
    """Return the last line of a table that begins at `first` and is never closed."""
    place = bisect_right(borders, first)
    end = borders[place] if place < len(borders) else len(inside)
    before = bisect_left(rows, end)
    return _end_of_nested(max(first, rows[before - 1]) if before else first, inside)


def _end_of_nested(number: int, inside: list[bool]) -> int:
    """Return the line that ends the templates and links which a line opens."""
    while number + 1 < len(inside) and inside[number + 1]:
        number += 1
    return number


def _is_head(lines: list[str], number: int) -> bool:
    """Tell whether a line that begins with "!" is a row of a table."""
    following = lines[number + 1] if number + 1 < len(lines) else ""
    return "!!" in lines[number] or _ROW.match(following) is not None
