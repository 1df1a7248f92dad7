"""Reader of LAMA data: relations.jsonl and one file of facts per relation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trelm_ds.errors import UserError
from trelm_ds.files import read_lines

SUBJECT, OBJECT = "[X]", "[Y]"


@dataclass(frozen=True)
class Fact:
    """One (subject, object) pair of a relation; `tier` says how well the corpus states it, if the data has tiers."""

    subject: str
    obj: str
    tier: str | None


@dataclass(frozen=True)
class Relation:
    """A relation with its facts; `template` is a sentence with one [X] for the subject and one [Y] for the object."""

    id: str
    label: str
    template: str
    facts: list[Fact]


def read_lama(folder: str | Path) -> list[Relation]:
    """Read every relation of FOLDER/TREx that has a facts file, sorted by number.

    Args:
        folder: folder with `relations.jsonl` and `TREx/P*.jsonl` or `TREx/P*.jsonl.gz`.

    Raises:
        UserError: a file is missing or malformed (names file and line), or a relation has facts but no template.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; give one with relations.jsonl and TREx/P*.jsonl")
    paths = sorted(path for pattern in ("P*.jsonl", "P*.jsonl.gz") for path in (folder / "TREx").glob(pattern))
    if not paths:
        raise UserError(f"{folder / 'TREx'}: holds no P*.jsonl or P*.jsonl.gz; fetch LAMA's facts too")
    known = _read_templates(folder / "relations.jsonl")
    by_id: dict[str, Path] = {}
    for path in paths:
        name = path.name.split(".")[0]
        if name in by_id:
            raise UserError(f"{path}: duplicates {by_id[name].name}; keep one of the two")
        if name not in known:
            raise UserError(f"{path}: relation {name} has no template; add it to {folder / 'relations.jsonl'}")
        by_id[name] = path
    numbered = sorted(by_id, key=lambda name: (len(name), name))
    return [Relation(name, *known[name], facts=_read_facts(by_id[name])) for name in numbered]


def _read_templates(path: Path) -> dict[str, tuple[str, str]]:
    """Read relation -> (label, template)."""
    known: dict[str, tuple[str, str]] = {}
    for place, line in _json_lines(path):
        name, template = _text(line, "relation", place), _text(line, "template", place)
        if template.count(SUBJECT) != 1 or template.count(OBJECT) != 1:
            raise UserError(f"{place}: the template must hold {SUBJECT} and {OBJECT} once each, got '{template}'")
        label = line.get("label")
        known[name] = (label if isinstance(label, str) else name, template)
    return known


def _read_facts(path: Path) -> list[Fact]:
    facts = []
    for place, line in _json_lines(path):
        subject, obj, tier = _text(line, "sub_label", place), _text(line, "obj_label", place), line.get("tier")
        facts.append(Fact(subject, obj, None if tier is None else str(tier)))
    return facts


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("file:line", object) for every line that is not blank."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; fetch it with the rest of LAMA")
    for number, text in read_lines(path):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path}:{number}: not valid JSON: {error}") from None
        if not isinstance(line, dict):
            raise UserError(f"{path}:{number}: expected a JSON object, got {type(line).__name__}")
        yield f"{path}:{number}", line


def _text(line: dict[str, Any], key: str, place: str) -> str:
    """Return a non-empty string of an object."""
    value = line.get(key)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: '{key}' must be a non-empty string, got {value!r}")
    return value
