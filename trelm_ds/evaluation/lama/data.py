"""Readers of LAMA's published files (Petroni et al., 2019; github.com/facebookresearch/LAMA, `data.zip`).

| part | files | question |
|---|---|---|
| trex | `relations.jsonl`, `TREx/P*.jsonl` | the relation's template, with `sub_label` for [X] |
| google_re | `Google_RE/{place_of_birth,date_of_birth,place_of_death}_test.jsonl` | the templates of LAMA's scripts |
| conceptnet | `ConceptNet/test.jsonl` | `masked_sentences`; `pred` is the relation |
| squad | `Squad/test.jsonl` | `masked_sentences`; one relation |

Every file may be gzipped as `*.jsonl.gz`. A record is a JSON object with `obj_label`, the answer.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trelm_ds.errors import UserError
from trelm_ds.files import read_lines

SUBJECT, OBJECT, MASK = "[X]", "[Y]", "[MASK]"
PARTS = ("trex", "google_re", "conceptnet", "squad")
GROUPINGS = ("tier",)
"""fields of a record by which its facts are also scored in groups; a record may lack them"""
NEGATIVE_JUDGMENT, NO_MASK = "negative_judgment", "no_mask"

_FOLDERS = {"trex": "TREx", "google_re": "Google_RE", "conceptnet": "ConceptNet", "squad": "Squad"}
_GOOGLE_RE = {  # scripts/run_experiments.py of LAMA
    "place_of_birth": "[X] was born in [Y] .",
    "date_of_birth": "[X] (born [Y]).",
    "place_of_death": "[X] died in [Y] .",
}
_PROPERTIES = {"place_of_birth": "P19", "date_of_birth": "P569", "place_of_death": "P20"}  # in Wikidata
_SEVERAL = 2  # sentences a question may have: BERT reads a pair
_QID, _PID = re.compile(r"Q(\d{1,12})"), re.compile(r"P(\d{1,9})")


@dataclass(frozen=True)
class Fact:
    """One fact and how it is asked for.

    Attributes:
        subject, obj: the labels; the subject is "" where a file gives none.
        texts: one sentence, or a pair, with `MASK` in place of the object.
        qid: number of the subject's Wikidata id, if the file gives one.
        object_qid: likewise of the object.
        groups: grouping -> group, such as {"tier": "often"}.
        from_template: whether the texts are a template with the subject in it.
    """

    subject: str
    obj: str
    texts: tuple[str, ...]
    qid: int | None = None
    object_qid: int | None = None
    groups: dict[str, str] = field(default_factory=dict)
    from_template: bool = True


@dataclass(frozen=True)
class Relation:
    """A relation of a part with its distinct facts, and how many records were left out, by reason."""

    part: str
    id: str
    label: str
    facts: list[Fact]
    skipped: Counter[str]

    @property
    def pid(self) -> int | None:
        """Number of the relation's Wikidata property; None for the relations of ConceptNet and SQuAD."""
        found = _PID.fullmatch(_PROPERTIES.get(self.id, self.id)) if self.part in ("trex", "google_re") else None
        return int(found[1]) if found else None


def read_parts(folder: str | Path) -> dict[str, list[Relation]]:
    """Read every part of LAMA that FOLDER holds.

    Facts are distinct: by (subject, object) where a template asks for them, as in LAMA, else by sentence and object.

    Returns:
        part -> its relations: T-REx by number, ConceptNet by name.

    Raises:
        UserError: there is no part, a file is missing or malformed (names file and line), a relation has no template.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; give one with relations.jsonl and TREx/P*.jsonl")
    readers: dict[str, Callable[[Path], list[Relation]]] = {
        "trex": _read_trex,
        "google_re": _read_google_re,
        "conceptnet": _read_conceptnet,
        "squad": _read_squad,
    }
    found = {part: readers[part](folder) for part in PARTS if (folder / _FOLDERS[part]).is_dir()}
    if not found:
        raise UserError(f"{folder}: holds none of {', '.join(_FOLDERS.values())}; fetch LAMA's data there")
    return found


def unhelpful_names_folder(folder: Path, part: str) -> Path:
    """Name the folder with LAMA-UHN's files of a part."""
    return folder / f"{_FOLDERS[part]}_UHN"


def read_unhelpful_names(folder: Path, part: str, relations: list[str]) -> dict[str, set[tuple[str, str]]]:
    """Read which facts LAMA-UHN keeps, from `TREx_UHN` or `Google_RE_UHN` as LAMA's `create_lama_uhn.py` writes them.

    Returns:
        relation -> the (subject, object) it keeps.

    Raises:
        UserError: the file of a relation is missing or malformed.
    """
    place = unhelpful_names_folder(folder, part)
    suffix = "_test" if part == "google_re" else ""
    kept = {}
    for name in relations:
        path = _existing(place, f"{name}{suffix}")
        if path is None:
            raise UserError(f"{place}: lacks {name}{suffix}.jsonl; add it, or remove the folder to compute the filter")
        kept[name] = {(_text(line, "sub_label", at), _text(line, "obj_label", at)) for at, line in _json_lines(path)}
    return kept


# --- T-REx, Google-RE: templates ---
def _read_trex(folder: Path) -> list[Relation]:
    paths = _relation_files(folder / "TREx", "P*", "")
    known = _read_templates(folder / "relations.jsonl")
    for name, path in paths.items():
        if name not in known:
            raise UserError(f"{path}: relation {name} has no template; add it to {folder / 'relations.jsonl'}")
    numbered = sorted(paths, key=lambda name: (len(name), name))
    return [_by_template("trex", name, *known[name], paths[name]) for name in numbered]


def _read_google_re(folder: Path) -> list[Relation]:
    paths = _relation_files(folder / "Google_RE", "*_test", "_test")
    for name, path in paths.items():
        if name not in _GOOGLE_RE:
            raise UserError(f"{path}: LAMA has no template for {name}, only for {', '.join(_GOOGLE_RE)}; remove it")
    return [
        _by_template("google_re", name, name.replace("_", " "), template, paths[name])
        for name, template in _GOOGLE_RE.items()
        if name in paths
    ]


def _relation_files(folder: Path, pattern: str, suffix: str) -> dict[str, Path]:
    """Find the file of every relation: relation -> path."""
    os.listdir(folder)  # `glob` finds nothing in a folder that may not be read
    paths = sorted(path for end in ("jsonl", "jsonl.gz") for path in folder.glob(f"{pattern}.{end}"))
    if not paths:
        raise UserError(f"{folder}: holds no {pattern}.jsonl or {pattern}.jsonl.gz; fetch LAMA's facts too")
    return {
        name: found
        for name in dict.fromkeys(path.name.split(".")[0].removesuffix(suffix) for path in paths)
        if (found := _existing(folder, f"{name}{suffix}"))
    }


def _read_templates(path: Path) -> dict[str, tuple[str, str]]:
    """Read relation -> (label, template)."""
    known: dict[str, tuple[str, str]] = {}
    for place, line in _json_lines(path):
        name, template = _text(line, "relation", place), _text(line, "template", place)
        if template.count(SUBJECT) != 1 or template.count(OBJECT) != 1:
            raise UserError(f"{place}: the template must hold {SUBJECT} and {OBJECT} once each, got {template!r:.120}")
        label = line.get("label")
        known[name] = (label if isinstance(label, str) else name, template)
    return known


def _by_template(part: str, name: str, label: str, template: str, path: Path) -> Relation:
    facts: dict[Any, Fact] = {}
    skipped: Counter[str] = Counter()
    asked = template.replace(OBJECT, MASK)
    for place, line in _json_lines(path):
        subject, obj = _text(line, "sub_label", place), _text(line, "obj_label", place)
        if _rejected(line, place):
            skipped[NEGATIVE_JUDGMENT] += 1
            continue
        qids = (_qid(line, ("sub_uri", "sub_w")), _qid(line, ("obj_uri", "obj_w")))
        fact = Fact(subject, obj, (asked.replace(SUBJECT, subject),), *qids, _groups(line))
        _add(facts, (subject, obj), fact, skipped)
    return Relation(part, name, label, list(facts.values()), skipped)


def _rejected(line: dict[str, Any], place: str) -> bool:
    """Whether more raters of Google-RE denied a fact than confirmed it; LAMA leaves such facts out."""
    judgments = line.get("judgments") or []
    if not isinstance(judgments, list) or not all(isinstance(one, dict) for one in judgments):
        raise UserError(f"{place}: 'judgments' must be a list of objects, got {judgments!r:.80}")
    yes = sum(one.get("judgment") == "yes" for one in judgments)
    return len(judgments) - yes > yes


# --- ConceptNet, SQuAD: sentences ---
def _read_conceptnet(folder: Path) -> list[Relation]:
    by_relation: dict[str, tuple[dict[Any, Fact], Counter[str]]] = {}
    for place, line in _json_lines(_test_file(folder / "ConceptNet")):
        facts, skipped = by_relation.setdefault(_text(line, "pred", place), ({}, Counter()))
        _add_sentence(facts, skipped, place, line)
    return [
        Relation("conceptnet", name, name, list(by_relation[name][0].values()), by_relation[name][1])
        for name in sorted(by_relation)
    ]


def _read_squad(folder: Path) -> list[Relation]:
    facts: dict[Any, Fact] = {}
    skipped: Counter[str] = Counter()
    for place, line in _json_lines(_test_file(folder / "Squad")):
        _add_sentence(facts, skipped, place, line)
    return [Relation("squad", "squad", "SQuAD", list(facts.values()), skipped)]


def _test_file(folder: Path) -> Path:
    path = _existing(folder, "test")
    if path is None:
        raise UserError(f"{folder}: holds no test.jsonl or test.jsonl.gz; fetch LAMA's facts too")
    return path


def _add_sentence(facts: dict[Any, Fact], skipped: Counter[str], place: str, line: dict[str, Any]) -> None:
    obj, texts = _text(line, "obj_label", place), line.get("masked_sentences")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"{place}: 'masked_sentences' must be a list of sentences, got {texts!r:.80}")
    if len(texts) > _SEVERAL:
        raise UserError(f"{place}: 'masked_sentences' may hold {_SEVERAL} sentences at most, got {len(texts)}")
    if not any(MASK in text for text in texts):
        skipped[NO_MASK] += 1
        return
    subject = next((line[key] for key in ("sub_label", "sub") if isinstance(line.get(key), str)), "")
    fact = Fact(subject, obj, tuple(texts), groups=_groups(line), from_template=False)
    _add(facts, (fact.texts, obj), fact, skipped)


# --- Records ---
def _add(facts: dict[Any, Fact], key: Any, fact: Fact, skipped: Counter[str]) -> None:
    if facts.setdefault(key, fact) is not fact:
        skipped["duplicate"] += 1


def _existing(folder: Path, stem: str) -> Path | None:
    """Find STEM.jsonl or STEM.jsonl.gz."""
    found = [path for end in ("jsonl", "jsonl.gz") if (path := folder / f"{stem}.{end}").is_file()]
    if len(found) > 1:
        raise UserError(f"{found[1]}: duplicates {found[0].name}; keep one of the two")
    return found[0] if found else None


def _qid(line: dict[str, Any], keys: tuple[str, str]) -> int | None:
    """Read a Wikidata id from the key of T-REx or else from that of Google-RE, where most records have none."""
    for key in keys:
        if isinstance(line.get(key), str) and (found := _QID.fullmatch(line[key])):
            return int(found[1])
    return None


def _groups(line: dict[str, Any]) -> dict[str, str]:
    return {name: str(line[name]) for name in GROUPINGS if line.get(name) is not None}


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("file:line", object) for every line that is not blank."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; fetch it with the rest of LAMA")
    for number, text in read_lines(path):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            json.dumps(line, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # half of a character, which no tokenizer takes and no file can hold
            raise UserError(f"{path}:{number}: holds \\ud800 to \\udfff, which is no text; remove the record") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not valid JSON: {error}") from None
        if not isinstance(line, dict):
            raise UserError(f"{path}:{number}: expected a JSON object, got {type(line).__name__}")
        yield f"{path}:{number}", line


def _text(line: dict[str, Any], key: str, place: str) -> str:
    """Return a non-empty string of an object."""
    value = line.get(key)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: '{key}' must be a non-empty string, got {value!r:.80}")
    return value
