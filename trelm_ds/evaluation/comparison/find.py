"""Which result files, and of which models, the arguments of `trelm compare` mean."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from trelm_ds.errors import UserError
from trelm_ds.evaluation.comparison.sets import EvaluatedSet, Result, SetKey, one_line, read_result

_DEPTH = 6  # folders below the one that is given
_START = 1024  # bytes of a result in which its task stands, being its first key
_NOT_RESULTS = (".runs",)  # folders of records of runs, beside a result


class _Argument(NamedTuple):
    label: str | None
    path: Path


@dataclass
class Model:
    """A column of the table: all that is known of one model.

    Attributes:
        name: label, or as much of the folder's path as tells it from the others.
        folders: the model's folder as the results name it; several where a label joins them.
        sets: what it was scored on.
    """

    name: str
    folders: list[str]
    sets: dict[SetKey, EvaluatedSet] = field(default_factory=dict)


def find_models(arguments: Sequence[str]) -> list[Model]:
    """Read the results that arguments mean, and put those of one model together.

    Args:
        arguments: result files; folders, which are searched; folders of models, whose results lie in them or beside
            them; each possibly as NAME=PATH, which gives the model a name.

    Returns:
        models in the order in which they are first named.

    Raises:
        UserError: nothing is there, a file is no result, or a model has two results of the same task.
    """
    found: dict[tuple[str, str], list[Result]] = {}  # by ("label" or "folder", its value)
    seen: set[tuple[str | None, str]] = set()
    for argument in map(_argument, arguments):
        for result in _results(argument):
            file = os.path.realpath(result.path)
            if (argument.label, file) in seen:
                continue
            seen.add((argument.label, file))
            key = ("label", argument.label) if argument.label else ("folder", _identity(result.model))
            found.setdefault(key, []).append(result)
    names = _names(list(found))
    return [_model(names[key], results) for key, results in found.items()]


def _argument(text: str) -> _Argument:
    """Divide NAME=PATH; a path that is there as it stands is no label."""
    label, sign, path = text.partition("=")
    if not sign or Path(text).exists():
        return _Argument(None, Path(text))
    if not label.strip() or not path:
        raise UserError(f"'{text}': give NAME=PATH, or a path")
    return _Argument(label.strip(), Path(path))


def _results(argument: _Argument) -> list[Result]:
    path = argument.path
    if path.is_file():
        return [read_result(path)]
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; give results of `trelm evaluate`, or folders with them")
    is_model = (path / "config.json").is_file()
    files = [*_search(path, _DEPTH), *(_files(path.resolve().parent) if is_model else [])]
    results = [read_result(file) for file in files]
    if is_model:
        results = [result for result in results if _means(result.model, path)]
    if not results:
        where = (
            "no result of `trelm evaluate` in it or beside it" if is_model else "holds no result of `trelm evaluate`"
        )
        raise UserError(f"{path}: {where}; give the --out file")
    return results


def _search(folder: Path, depth: int) -> Iterator[Path]:
    yield from _files(folder)
    if depth:
        for below in sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()):
            if not below.name.startswith(".") and below.suffix not in _NOT_RESULTS:
                yield from _search(below, depth - 1)


def _files(folder: Path) -> Iterator[Path]:
    """Yield the folder's files that look like results, damaged ones as well."""
    for path in sorted(folder.glob("*.json")):
        if path.is_file() and not path.name.startswith("."):
            with path.open("rb") as stream:
                start = stream.read(_START)
            if b'"task"' in start and b'"model"' in start:
                yield path


def _identity(model: str) -> str:
    """Return what is equal for a folder by any of its paths."""
    return os.path.realpath(model) if os.path.exists(model) else os.path.normpath(model)


def _means(model: str, folder: Path) -> bool:
    """Whether a result's model is this folder; a relative path may have been given elsewhere, above the folder."""
    if _identity(model) == os.path.realpath(folder):
        return True
    parts = Path(os.path.normpath(model)).parts
    return not Path(model).is_absolute() and ".." not in parts and folder.resolve().parts[-len(parts) :] == parts


def _names(keys: list[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Name models by their label, else by the shortest end of the path that no other one has."""
    labels = {value for kind, value in keys if kind == "label"}
    ends = {value: _ends(value) for kind, value in keys if kind == "folder"}
    names = {("label", label): label for label in labels}
    for folder, mine in ends.items():
        taken = labels.union(*(of for other, of in ends.items() if other != folder))
        names["folder", folder] = next((end for end in mine if end not in taken), folder)
    return names


def _ends(folder: str) -> list[str]:
    parts = Path(folder).parts
    return ["/".join(parts[-length:]) for length in range(1, len(parts))] + [folder]


def _model(name: str, results: list[Result]) -> Model:
    model = Model(name, list(dict.fromkeys(result.model for result in results)))
    for result in results:
        for of in result.sets:
            if before := model.sets.get(of.key):
                raise UserError(
                    f"{one_line(name)}: {before.result} and {result.path} both have {one_line(of.key.task)} results; "
                    "give one of the two files, or each a name (NAME=PATH) to compare them"
                )
            model.sets[of.key] = of
    return model
