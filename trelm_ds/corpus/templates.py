"""Templates that stand for words in a sentence. All others (boxes, notes, tables) are not prose."""

from __future__ import annotations

import re

from mwparserfromhell.nodes import Template
from mwparserfromhell.wikicode import Wikicode

# The positional parameter that the reader sees.
_SHOWN = {
    "nowrap": 1, "nobr": 1, "small": 1, "smaller": 1, "big": 1, "em": 1, "strong": 1, "smallcaps": 1, "sc": 1,
    "mono": 1, "abbr": 1, "abbrlink": 1, "ill": 1, "interlanguage link": 1, "nihongo": 1, "quote": 1, "blockquote": 1,
    "cquote": 1, "quotation": 1, "flag": 1, "visible anchor": 1, "vanchor": 1, "not a typo": 1, "sic": 1, "linktext": 1,
    "lang": 2, "transliteration": 2, "transl": 2, "tooltip": 1, "no wrap": 1, "angbr": 1, "var": 1,
}  # fmt: skip
_SPELLED = {
    "'": "'", "`": "`", "ndash": "–", "–": "–", "endash": "–", "spaced ndash": " – ", "spnd": " – ", "snd": " – ",
    "mdash": "—", "emdash": "—", "nbsp": " ", "space": " ", "!": "|", "dot": " · ", "times": "×", "sup2": "²",
}  # fmt: skip
_BETWEEN = {"to": "to", "-": "–", "–": "–", "and": "and", "or": "or", "by": "by", "x": "by", "×": "by", "+/-": "±"}
_NUMBER = re.compile(r"[-−+]?[\d,.]+(?:[/⁄]\d+)?$")
_LONGEST = 2000  # characters; a template with longer parameters does not stand for a few words


def visible_part(template: Template) -> Wikicode | str:
    """Return what a reader sees of a template in a sentence: wikitext to process further, plain text, or ""."""
    name = str(template.name).strip().lower().replace("_", " ")
    if name in _SPELLED:
        return _SPELLED[name]
    if name.startswith("lang-") and name[5:6].isalpha():
        return _positional(template, 1)
    if name in _SHOWN:
        return _positional(template, _SHOWN[name])
    values = [str(parameter.value).strip() for parameter in template.params if not parameter.showkey]
    if not values or sum(map(len, values)) > _LONGEST:
        return ""
    if name in ("convert", "cvt"):
        return _measure(values)
    if name in ("circa", "c.", "ca"):
        return " – ".join(f"c. {value}" for value in values[:2])
    if name == "as of":
        return f"{str(template.name).strip()[:1]}s of {'-'.join(values[:3])}"
    if name in ("frac", "fraction", "sfrac"):
        return _fraction(values)
    if name in ("us$", "usd", "a$", "c$", "gbp", "£", "eur", "€", "inr"):
        sign = {"usd": "US$", "gbp": "£", "eur": "€", "inr": "₹"}.get(name, name.upper())
        return f"{sign}{values[0]}"
    if name in ("hms", "uss", "hmas", "hmcs", "rms", "ss", "ms", "mv"):
        return f"{name.upper()} {values[0]}"
    if name == "ship":
        return " ".join(values[:2])
    if name in ("val", "formatnum"):
        return values[0]
    return ""


def _positional(template: Template, number: int) -> Wikicode | str:
    """Return a positional parameter, counted from 1; "" if it is missing."""
    shown = [parameter for parameter in template.params if not parameter.showkey]
    if not 1 <= number <= len(shown):
        return template.get(str(number)).value if number and template.has(str(number)) else ""
    return shown[number - 1].value


def _measure(values: list[str]) -> str:
    """Spell out a measure: `{{convert|5|to|10|km|mi}}` is "5 to 10 km"."""
    said: list[str] = []
    for value in values:
        if _NUMBER.match(value):
            said.append(value)
        elif value.lower() in _BETWEEN and said:
            said.append(_BETWEEN[value.lower()])
        else:
            return " ".join([*said, value]) if said else ""
    return " ".join(said)


def _fraction(values: list[str]) -> str:
    """Spell out a fraction: 2 is "1/2", 2 and 3 is "2/3", 1, 2 and 3 is "1 2/3"."""
    if len(values) == 1:
        return f"1/{values[0]}"
    return f"{values[0]}/{values[1]}" if len(values) == 2 else f"{values[0]} {values[1]}/{values[2]}"
