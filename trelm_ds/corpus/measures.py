"""Numbers and measures of templates, as the reader sees them."""

from __future__ import annotations

import re

_BETWEEN = {
    "to": " to ", "-": "–", "–": "–", "and": " and ", "or": " or ", "by": " by ", "x": " by ", "×": " by ",
    "*": " × ", "+/-": " ± ", "±": " ± ", "to(-)": " to ", "and(-)": " and ", "to about": " to about ", "+": " + ",
}  # fmt: skip
_NUMBER = re.compile(r"[-−+]?\d[\d,.]*(?:e[-−+]?\d+)?(?:\+\d+)?(?://?\d+|⁄\d+)?$|[-−+]?\.\d+$")
_MIXED = re.compile(r"(\d)\+(\d+/)")
# Units of which one measure has two: 5 ft 11 in. A number behind any other unit is a precision.
_COMPOUND = {
    ("ft", "in"), ("foot", "in"), ("yd", "ft"), ("yd", "in"), ("mi", "yd"), ("mi", "ft"), ("mi", "ch"), ("lb", "oz"),
    ("st", "lb"), ("m", "cm"), ("h", "min"), ("min", "s"),
}  # fmt: skip
_UNITS = {
    "C": "°C", "F": "°F", "degC": "°C", "degF": "°F", "km2": "km²", "m2": "m²", "cm2": "cm²", "mm2": "mm²",
    "km3": "km³", "m3": "m³", "cm3": "cm³", "sqmi": "sq mi", "sqkm": "km²", "sqft": "sq ft", "sqyd": "sq yd",
    "sqin": "sq in", "C-change": "°C", "F-change": "°F", "cuft": "cu ft", "cuyd": "cu yd", "cumi": "cu mi",
    "cuin": "cu in", "usgal": "US gal", "USgal": "US gal", "impgal": "imp gal", "m/s2": "m/s²", "/km2": "/km²",
    "/sqmi": "/sq mi", "PD/km2": "/km²", "PD/sqmi": "/sq mi",
}  # fmt: skip
_POWER_OF = re.compile(r"(?<=[A-Za-z])[23](?![0-9A-Za-z])")  # m3/s, lb/in2
_POWERS = {"e3": "thousand ", "e6": "million ", "e9": "billion "}
_RAISED = str.maketrans("0123456789+-−=()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿ")
_RAISABLE = re.compile(r"[-−+0-9n]{1,12}$")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip


def measure(values: list[str]) -> str:
    """Spell out a measure, `5, to, 10, km, mi`: "5 to 10 km"; "" if it does not begin with a number."""
    said = ""
    for place, value in enumerate(values):
        if _NUMBER.match(value):
            said += value
        elif said and value.lower() in _BETWEEN and _NUMBER.match(_at(values, place + 1)):
            said += _BETWEEN[value.lower()]
        elif said:
            said = f"{said} {_unit(value)}".rstrip()
            following = _at(values, place + 2)
            if (value, following) in _COMPOUND and _NUMBER.match(values[place + 1]):
                said += f" {values[place + 1]} {following}"
            break
        else:
            break
    return _MIXED.sub(r"\1 \2", said.replace("//", "/"))


def _at(values: list[str], place: int) -> str:
    return values[place] if place < len(values) else ""


def _unit(code: str) -> str:
    power = _POWERS.get(code[:2], "")
    code = code[2:] if power else code
    return power + (_UNITS.get(code) or _POWER_OF.sub(lambda match: superscript(match.group()), code))


def fraction(values: list[str]) -> str:
    """Spell out a fraction: 2 is "1/2", 2 and 3 is "2/3", 1, 2 and 3 is "1 2/3"."""
    if len(values) == 1:
        return f"1/{values[0]}"
    return f"{values[0]}/{values[1]}" if len(values) == 2 else f"{values[0]} {values[1]}/{values[2]}"


def grouped(number: str) -> str:
    """Put commas between the thousands of a plain number; anything else stays as it is."""
    match = re.fullmatch(r"([-−+]?)([1-9][0-9]{3,60})(\.[0-9]+)?", number)
    return f"{match[1]}{int(match[2]):,}{match[3] or ''}" if match else number


def superscript(text: str) -> str:
    """Raise a number, as in 10⁶, m² and Ca²⁺; letters stay as they are, as in 1st."""
    return text.translate(_RAISED) if _RAISABLE.match(text) else text


def date(values: list[str]) -> str:
    """Spell out a year, month and day given as numbers: "4 April 2020"."""
    year, month, day = (*values, "", "", "")[:3]
    if month.isdecimal() and 1 <= int(month[:3]) <= len(_MONTHS):
        month = _MONTHS[int(month[:3]) - 1]
    return " ".join(part for part in (day, month, year) if part)


def value_of(values: list[str], exponent: str, unit: str) -> str:
    """Spell out a measured value with its uncertainty: "1.2±0.3 × 10⁶ kg", "1.2+0.4−0.3", "1.2(3)"; or a range."""
    first, second, third = (*values, "", "")[:3]
    if second in _BETWEEN:
        said = first + _BETWEEN[second] + third
    elif third:
        said = f"{first}+{second.lstrip('+')}−{third.lstrip('-−')}"
    else:
        said = f"{first}±{second}" if second and not second.startswith("(") else first + second
    if exponent:
        said += f" × 10{superscript(exponent)}"
    return f"{said} {unit}" if unit else said
