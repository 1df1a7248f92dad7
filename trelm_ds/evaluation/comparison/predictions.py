"""The predictions that lie beside a result, by the set of examples that they are of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trelm_ds.errors import UserError
from trelm_ds.evaluation.comparison.sets import LAMA, SetKey, one_line
from trelm_ds.files import read_lines


class Answers(NamedTuple):
    """What a model answered to the examples of a set.

    Attributes:
        examples: what identifies each example, to pair those of two models: its true label, or LAMA's fact.
        gold: true label, set of labels or number of each; of LAMA's facts the relation.
        predicted: by seed, as `gold`; of LAMA's facts the rank of the true answer.
        strata: int [n], groups within which examples are resampled; None: they are one.
    """

    examples: list[Any]
    gold: list[Any]
    predicted: list[list[Any]]
    strata: np.ndarray | None = None


def read_predictions(path: Path, task: str) -> dict[SetKey, Answers]:
    """Read what `trelm evaluate` wrote of every example.

    Args:
        task: the result's, which says what the records are.

    Raises:
        UserError: the file is damaged or holds something else; names the line.
    """
    return _facts(path) if task == LAMA else _examples(path)


def _examples(path: Path) -> dict[SetKey, Answers]:
    found: dict[SetKey, list[tuple[Any, list[Any]]]] = {}

    def add(record: dict[str, Any]) -> None:
        rows = found.setdefault(SetKey(str(record["task"]), str(record["split"])), [])
        if record["index"] != len(rows):
            raise ValueError(f"record {record['index']} of {record['split']} where {len(rows)} should be")
        predicted = [_target(value) for value in record["predicted"]]
        if rows and len(predicted) != len(rows[0][1]):
            raise ValueError(f"{len(predicted)} predictions, {len(rows[0][1])} before")
        rows.append((_target(record["gold"]), predicted))

    _each(path, add)
    answers = {}
    for key, rows in found.items():
        gold = [true for true, _ in rows]
        answers[key] = Answers(gold, gold, [list(run) for run in zip(*(given for _, given in rows), strict=True)])
    return answers


def _facts(path: Path) -> dict[SetKey, Answers]:
    found: dict[SetKey, list[tuple[tuple[str, ...], str, int]]] = {}

    def add(record: dict[str, Any]) -> None:
        rank, tokens, relation = record["rank"], record["tokens"], str(record["relation"])
        if not all(isinstance(number, int) and number > 0 for number in (rank, tokens)):
            raise ValueError(f"rank {str(rank)[:20]} of an object of {str(tokens)[:20]} tokens")
        fact = tuple(map(str, (relation, record["subject"], record["object"], *record["texts"])))
        one_token = [(), *record["groups"].items()]  # the others are a group of their own, and in no other
        for group in one_token if tokens == 1 else [("object", "multi_token")]:
            key = SetKey(LAMA, "/".join((str(record["part"]), *map(str, group))))
            found.setdefault(key, []).append((fact, relation, rank))

    _each(path, add)
    answers = {}
    for key, rows in found.items():
        facts, relations, ranks = (list(column) for column in zip(*sorted(rows), strict=True))
        strata = np.unique(np.array(relations), return_inverse=True)[1]
        answers[key] = Answers(facts, relations, [ranks], strata)
    return answers


def _each(path: Path, add: Callable[[dict[str, Any]], None]) -> None:
    for number, line in _lines(path):
        try:
            add(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not valid JSON: {error.msg}; evaluate again") from None
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else one_line(str(error))[:100]
            raise UserError(
                f"{path}:{number}: is no prediction of `trelm evaluate` ({reason}); evaluate again"
            ) from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield lines; only a last one may be blank."""
    blank = 0
    for number, line in read_lines(path):
        if line.strip():
            if blank:
                raise UserError(f"{path}:{blank}: is blank; evaluate again")
            yield number, line
        else:
            blank = blank or number


def _target(value: Any) -> Any:
    """Take a label, a set of labels or a number."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return frozenset(value)
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise ValueError(f"{str(value)[:40]!r} is no label")
