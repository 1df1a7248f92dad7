"""Templates that stand for words in a sentence. All others (boxes, notes, tables) are not prose."""

from __future__ import annotations

import re
from collections.abc import Callable

from mwparserfromhell.nodes import Template
from mwparserfromhell.wikicode import Wikicode

from trelm_ds.corpus.measures import date, fraction, grouped, measure, superscript, value_of

# The positional parameter that the reader sees.
_SHOWN = {
    "nowrap": 1, "nobr": 1, "nobreak": 1, "nwr": 1, "no wrap": 1, "small": 1, "smaller": 1, "big": 1,
    "larger": 1, "em": 1, "strong": 1, "smallcaps": 1, "sc": 1, "mono": 1, "code": 1, "samp": 1, "kbd": 1, "char": 1,
    "abbr": 1, "abbrlink": 1, "tooltip": 1, "ill": 1, "illm": 1, "interlanguage link": 1,
    "interlanguage link multi": 1, "nihongo2": 1, "nihongo3": 1, "nihongo foot": 1, "quote": 1,
    "blockquote": 1, "bquote": 1, "bq": 1, "cquote": 1, "quotation": 1, "poemquote": 1, "poem quote": 1, "poem": 1,
    "flag": 1, "flagu": 1, "flagcountry": 1, "visible anchor": 1, "vanchor": 1, "not a typo": 1, "proper name": 1,
    "sic": 1, "linktext": 1, "angbr": 1, "angle bracket": 1, "var": 1, "mvar": 1, "math": 1, "unicode": 1, "nobold": 1,
    "noitalic": 1, "noitalics": 1, "italic": 1, "bold": 1, "underline": 1, "strikethrough": 1, "overline": 1,
    "text": 1, "xt": 1, "mxt": 1, "!xt": 1, "large": 1, "midsize": 1, "huge": 1, "nq": 1, "sc2": 1, "smallcaps2": 1,
    "font": 1, "bdi": 1,
    "hebrew": 1, "polytonic": 1, "nts": 1, "center": 1, "allcaps": 1, "crossreference": 1, "crossref": 1, "sub": 1,
    "lang": 2, "langx": 2, "script": 2, "rtl-lang": 2, "rtl lang": 2, "color": 2, "colour": 2, "align": 2,
    "background color": 2, "bg": 2, "sort": 2, "hover title": 2, "h:title": 2, "as written": 1, "tt": 1, "varserif": 1,
    "cns": 1, "reference necessary": 1,
}  # fmt: skip
# The last one, behind a language and, if given, a scheme (DIN, Hepburn); behind colours or a size.
_LAST = {"transliteration", "transl", "translit", "wikt-lang", "wiktlang", "font color", "fontcolor", "resize"}
_NAMED = ("text", "quote", "content")  # other names of the parameter
_LINKED = {"ill", "illm", "interlanguage link", "interlanguage link multi"}  # their parameter lt is what is shown
_SPELLED = {
    "'": "'", "`": "`", "'s": "'s", "s'": "s'", "' \"": "' \"", "\" '": "\" '", "\"'": "\"'", "'\"": "'\"",
    "prime": "′", "ndash": "–", "–": "–", "endash": "–", "en dash": "–", "nsndash": "–", "nsnd": "–",
    "spaced ndash": " – ", "spaced en dash": " – ", "spaced endash": " – ", "sndash": " – ", "spnd": " – ",
    "snd": " – ", "dash": " – ", "spaced en dash space": " – ", "snds": " – ",
    "mdash": "—", "emdash": "—", "em dash": "—", "—": "—", "spaced mdash": " — ", "spaced em dash": " — ",
    "mdashb": " — ", "nbhyph": "-", "hyphen": "-", "nbhyphen": "-", "minus": "−",
    "nbsp": " ", "space": " ", "spaces": " ", "thinsp": " ", "thin space": " ", "hairsp": " ",
    "hair space": " ", "ensp": " ", "emsp": " ", "figure space": " ", "nnbsp": " ", "zwsp": "", "wbr": "", "shy": "",
    "zwj": "", "zwnj": "", "!": "|", "=": "=", "pipe": "|", "(": "{", ")": "}", "((": "{{", "))": "}}", "!(": "[",
    ")!": "]", "dot": " · ", "·": " · ", "middot": " · ", "bull": " • ", "bullet": " • ", "•": " • ", "\\": " / ",
    "times": "×", "plusminus": "±", "±": "±", "+-": "±", "pm": "±", "degree": "°", "deg": "°", "sup2": "²",
    "sup3": "³", "pi": "π", "mu": "μ", "phi": "φ", "infin": "∞", "co2": "CO2", "h2o": "H2O", "flat": "♭",
    "sharp": "♯", "natural": "♮", "number sign": "#", "hash": "#", "half": "½",
    "okina": "ʻ", "ʻokina": "ʻ", "hamza": "ʾ", "ayin": "ʿ", "lt": "<", "gt": ">", "ampersand": "&",
    "wj": "",
}  # fmt: skip
_SIGNS = {
    "us$": "US$", "usd": "US$", "a$": "A$", "aud": "A$", "c$": "C$", "cad": "C$", "nz$": "NZ$", "nzd": "NZ$",
    "hk$": "HK$", "s$": "S$", "gbp": "£", "£": "£", "eur": "€", "€": "€", "inr": "₹", "indian rupee": "₹",
    "jpy": "¥", "¥": "¥", "cny": "CN¥", "krw": "₩", "won": "₩", "rub": "₽", "philippine peso": "₱", "php": "₱",
}  # fmt: skip
_SHIPS = {
    "hms", "uss", "hmas", "hmcs", "hmnzs", "rms", "ss", "ms", "mv", "usns", "uscgc", "usat", "ins", "sms", "orp",
    "hnlms", "hnoms", "hdms", "hswms", "csss", "rfa", "rv", "hmt", "hmhs", "lé",
    "gts", "hmis", "hmsas", "hmvs", "usav", "usrc",
}  # fmt: skip
_MUSIC = {
    "flat": "♭", "b": "♭", "♭": "♭", "sharp": "♯", "#": "♯", "♯": "♯", "natural": "♮", "n": "♮", "♮": "♮",
    "doubleflat": "𝄫", "bb": "𝄫", "doublesharp": "𝄪", "##": "𝄪", "x": "𝄪",
}  # fmt: skip
_FRACTION = re.compile(r"[0-9]{1,2}/[0-9]{1,2}$")  # {{1/2}}
_CHARGE = re.compile(r"\(([0-9]*[-+−])\)")  # of an ion
_CASES: dict[str, Callable[[str], str]] = {
    "lc": str.lower,
    "uc": str.upper,
    "lcfirst": lambda text: text[:1].lower() + text[1:],
    "ucfirst": lambda text: text[:1].upper() + text[1:],
    "formatnum": grouped,
}
_MADE: dict[str, Callable[[list[str]], str]] = {
    "convert": measure,
    "cvt": measure,
    "frac": fraction,
    "fraction": fraction,
    "sfrac": fraction,
    "circa": lambda values: " – ".join(f"c. {value}" for value in values[:2]),
    "fl.": lambda values: "fl. " + "–".join(values[:2]),
    "reign": lambda values: "r. " + "–".join(values[:2]),
    "sup": lambda values: superscript(values[0]),
    "e": lambda values: f" × 10{superscript(values[0])}",
    "10^": lambda values: f"10{superscript(values[0])}",
    "chem": lambda values: "".join(superscript(value) if value[-1:] in "+-−" else value for value in values),
    "music": lambda values: _MUSIC.get(values[0].lower(), ""),
    "chem2": lambda values: _CHARGE.sub(lambda match: superscript(match.group(1)), values[0]),
    "ship": lambda values: _joined(values[:2]),
    "sclass": lambda values: f"{values[0]}-class {_joined(values[1:2])}".rstrip(),
    "sortname": lambda values: _joined(values[:2]),
    "lit": lambda values: f"lit. '{values[0]}'",
    "gloss": lambda values: f"'{values[0]}'",
    "née": lambda values: f"née {values[0]}",
    "radic": lambda values: f"√{values[0]}",
    "bracket": lambda values: f"[{values[0]}]",
    "key press": "+".join,
    "section link": lambda values: " § ".join(values).strip(),
    "oldstyledate": lambda values: f"{_joined(values[:2])} [O.S. {_joined(values[2:3])}]",
    "ordinal": lambda values: _ordinal(values[0]),
    "no.": lambda values: f"No. {values[0]}",
    "gaps": "".join,
}
# What is left of a template without parameters, as in "{{circa}} 1500".
_BARE = {"circa": "c.", "fl.": "fl.", "reign": "r.", "née": "née", "lit": "lit.", "no.": "No."}
_ALIASES = {
    "c.": "circa", "ca": "circa", "ca.": "circa", "circ": "circa", "floruit": "fl.", "fl": "fl.", "r.": "reign",
    "superscript": "sup", "subscript": "sub", "chem 2": "chem2", "sclass2": "sclass", "sclass-": "sclass",
    "literal translation": "lit", "literally": "lit", "gl": "gloss", "nee": "née", "sqrt": "radic",
    "interp": "bracket", "slink": "section link", "keypress": "key press", "ship class": "sclass",
    "old style date": "oldstyledate", "lang-x": "langx", "formatnumber": "formatnum", "asof": "as of",
    "sqbrackets": "bracket", "convertabbrev": "convert", "nbr": "nowrap", "hyphen-minus": "hyphen", "numero": "no.",
    "key": "key press",
}  # fmt: skip
_LONGEST = 2000  # characters; a template with longer parameters does not stand for a few words


def name_of(template: Template) -> str:
    """Return a template's name in lower case, without its namespace; at most 60 characters."""
    name = " ".join(str(template.name)[:200].replace("_", " ").split()).lower()
    return name.removeprefix("template:").lstrip()[:60]


def visible_part(template: Template, text: Callable[[Wikicode], str]) -> Wikicode | str | None:
    """Return what a reader sees of a template in a sentence: wikitext to process further, or plain text.

    Args:
        template: the template or parser function.
        text: returns the visible text of wikitext.

    Returns:
        None for a template that does not stand for words.
    """
    name = name_of(template)
    name = _ALIASES.get(name, name)
    function, colon, _ = name.partition(":")
    if colon and function in _CASES:
        return _CASES[function](text(template.name).partition(":")[2].strip())
    if name in _SPELLED:
        return _SPELLED[name]
    if _FRACTION.match(name):
        return name
    if name in _LAST:
        return _positional(template, min(3, max(2, len(_shown(template)))))
    if name == "nihongo":  # English, Japanese, transcription
        return next((part for number in (1, 3, 2) if str(part := _positional(template, number)).strip()), "")
    if name in _LINKED and template.has("lt", ignore_empty=True):
        return template.get("lt").value
    if name in _SHOWN or name.endswith((" span", "-span")):  # {{citation needed span|the words}}
        return _positional(template, _SHOWN.get(name, 1))
    if name.startswith("lang-") or name.startswith("script/"):
        return _positional(template, 1)
    if name not in _MADE and name not in _SIGNS and name not in _SHIPS and name not in ("as of", "val", "formatnum"):
        return None
    return _made(name, template, text)


def _made(name: str, template: Template, text: Callable[[Wikicode], str]) -> str | None:
    """Make words of the parameters of a template; None if it has none, or too long ones."""
    if sum(len(str(parameter.value)) for parameter in template.params) > _LONGEST:
        return None
    named = {str(parameter.name).strip(): text(parameter.value).strip() for parameter in template.params}
    values = [named[str(parameter.name).strip()] for parameter in _shown(template)]
    if name == "as of":
        return named.get("alt") or (
            f"{'as' if named.get('lc') else 'As'} of {date(values[:3])}" if any(values) else None
        )
    if not any(values):
        return _BARE.get(name) or _SIGNS.get(name)
    if name in ("convert", "cvt") and named.get("adj") == "mid":  # the last one stands behind the unit: -tall, wide
        return measure(values[:-1]) + (values[-1] if values[-1].startswith("-") else f" {values[-1]}")
    if name == "val":
        unit = named.get("u") or named.get("ul") or named.get("up") or named.get("upl") or ""
        return value_of(values, named.get("e", ""), unit)
    if name == "formatnum":
        return grouped(values[0])
    if name in _SIGNS:
        return f"{_SIGNS[name]}{values[0]}"
    if name in _SHIPS:
        return f"{name.upper()} {values[0]}"
    return _MADE[name](values) or None


def _shown(template: Template) -> list:
    """Return the parameters without a name."""
    return [parameter for parameter in template.params if not parameter.showkey]


def _positional(template: Template, number: int) -> Wikicode | str:
    """Return a positional parameter, counted from 1; "" if it is missing."""
    shown = _shown(template)
    if number <= len(shown):
        return shown[number - 1].value
    for name in (str(number), *_NAMED):
        if template.has(name):
            return template.get(name).value
    return ""


def _joined(values: list[str]) -> str:
    return " ".join(value for value in values if value)


def _ordinal(number: str) -> str:
    """Return "1st", "2nd", "11th" ..."""
    if number[-2:] in ("11", "12", "13"):
        return f"{number}th"
    return number + {"1": "st", "2": "nd", "3": "rd"}.get(number[-1:], "th")
