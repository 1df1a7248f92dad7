"""What a classification task is, whatever file it comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from trelm_ds.errors import UserError

Scores = dict[str, float]


class Kind(StrEnum):
    """What is to be predicted of an example."""

    SINGLE = "one label"
    MULTI = "any number of labels"
    REGRESSION = "a number"


@dataclass(frozen=True)
class Example:
    """One text or pair of texts with what is to be predicted of it.

    Attributes:
        texts: one or two, with markers around the mentions that it is about.
        target: a label; a frozenset of labels; a number: as the task's kind has it.
        place: "file: record n", for messages.
        mentions: the characters [first, last) of `texts[0]` that must not be cut off; None where any may be.
    """

    texts: tuple[str, ...]
    target: Any
    place: str
    mentions: tuple[int, int] | None = None


@dataclass(frozen=True)
class Task:
    """A classification task with its data.

    Attributes:
        name: as results and plots call it.
        kind: what is predicted.
        labels: names of the outputs, in their order; one name for a regression.
        train: what a model is fine-tuned on.
        evaluated: splits that are scored, by name; "dev", by which the best epoch is chosen, is the first.
        reported: the split whose scores are the result.
        score: computes the metrics, by name, of (gold, predicted) targets.
        metric: the metric by which epochs and learning rates are compared.
        notes: what reading left out, as counts by reason.
        scoring: what the scores depend on beside labels and predictions, by name.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    train: list[Example]
    evaluated: dict[str, list[Example]]
    reported: str
    score: Callable[[Sequence[Any], Sequence[Any]], Scores]
    metric: str
    notes: dict[str, int] = field(default_factory=dict)
    scoring: dict[str, str | None] = field(default_factory=dict)

    @property
    def splits(self) -> dict[str, list[Example]]:
        """All splits, "train" first."""
        return {"train": self.train} | self.evaluated

    def baseline(self, split: str) -> Scores:
        """Score what knows the training labels only: always the most frequent label, or the mean of the numbers."""
        return self.score([example.target for example in self.evaluated[split]], self._most_frequent(split))

    def _most_frequent(self, split: str) -> list[Any]:
        targets = [example.target for example in self.train]
        answer: Any
        if self.kind is Kind.REGRESSION:
            answer = sum(targets) / len(targets)
        else:
            counts = Counter(label for target in targets for label in (target if self.kind is Kind.MULTI else [target]))
            best = max(sorted(counts), key=counts.__getitem__)
            answer = frozenset([best]) if self.kind is Kind.MULTI else best
        return [answer] * len(self.evaluated[split])


def check_labels(train: list[Example], evaluated: dict[str, list[Example]], hint: str) -> tuple[str, ...]:
    """Return the labels of the training split, sorted; every other split may use only these.

    Args:
        train, evaluated: examples whose targets are labels or sets of labels.
        hint: what to do where a split has another label.

    Raises:
        UserError: one does; or there is no label at all.
    """
    known = {label for example in train for label in _labels(example)}
    for example in (example for split in evaluated.values() for example in split):
        if unknown := sorted(_labels(example) - known):
            raise UserError(f"{example.place}: the label '{unknown[0]}' is not in the training split; {hint}")
    if not known:
        raise UserError(f"{train[0].place.split(': ')[0]}: no record has a label")
    return tuple(sorted(known))


def _labels(example: Example) -> set[str]:
    return {example.target} if isinstance(example.target, str) else set(example.target)
