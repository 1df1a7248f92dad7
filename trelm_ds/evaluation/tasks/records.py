"""Read files of JSON records; every mistake names file and record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from trelm_ds.errors import UserError
from trelm_ds.files import DAMAGED, open_binary

T = TypeVar("T")
_SUFFIXES = ("", ".gz", ".bz2")


def find_split(folder: Path, *names: str, hint: str) -> Path:
    """Find a split's file, plain or compressed, under one of its names.

    Raises:
        UserError: there is none.
    """
    if not folder.is_dir():
        raise UserError(f"--data: {folder} is not a folder; {hint}")
    for path in (folder / f"{name}{suffix}" for name in names for suffix in _SUFFIXES):
        if path.is_file():
            return path
    raise UserError(f"--data: {folder} has no {names[0]}; {hint}")


def read_json_file(path: Path) -> Any:
    """Read one JSON value from a plain or compressed file.

    Raises:
        UserError: it is missing, damaged or no JSON.
    """
    with open_binary(path) as stream:
        try:
            return json.loads(stream.read().decode("utf-8-sig"))
        except DAMAGED as error:
            raise UserError(f"{path}: damaged or truncated file ({error}); fetch it again") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not valid UTF-8 ({error.reason} at byte {error.start})") from None
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, nested too deeply
            raise UserError(f"{path}: cannot be read as JSON: {str(error)[:100]}") from None


def list_of_objects(content: Any, path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return ("file: record n", object) for every record of a JSON array.

    Raises:
        UserError: it is no array of objects, or an empty one.
    """
    if not isinstance(content, list):
        raise UserError(f"{path}: expected a JSON array of records, got {_kind(content)}")
    if not content:
        raise UserError(f"{path}: holds no record")
    records = []
    for number, record in enumerate(content, 1):
        place = f"{path}: record {number}"
        if not isinstance(record, dict):
            raise UserError(f"{place}: expected a JSON object, got {_kind(record)}")
        records.append((place, record))
    return records


def text(record: dict[str, Any], key: str, place: str) -> str:
    """Return a string that is not blank."""
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: '{key}' must be a text, got {_shown(value)}")
    return value


def texts(record: dict[str, Any], key: str, place: str) -> list[str]:
    """Return a list of strings, which may be empty."""
    value = record.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{place}: '{key}' must be a list of texts, got {_shown(value)}")
    return value


def span(first: Any, last: Any, length: int, what: str, place: str) -> tuple[int, int]:
    """Return the span [first, last) of something of `length`.

    Args:
        what: how the message names it, with the unit, such as "the mention, characters".
    """
    numbers = (first, last)
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        raise UserError(f"{place}: {what} must be two integers, got {_shown(list(numbers))}")
    if not 0 <= first < last <= length:
        raise UserError(f"{place}: {what} {_shown(first)} to {_shown(last)}, is not within the sentence of {length}")
    return first, last


def _kind(value: Any) -> str:
    return {dict: "an object", list: "an array", str: "a text", type(None): "null"}.get(type(value), "a number")


def _shown(value: Any) -> str:
    try:
        return repr(value)[:60]
    except ValueError:  # a number of thousands of digits
        return "a number of thousands of digits"
