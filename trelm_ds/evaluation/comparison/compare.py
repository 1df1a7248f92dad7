"""Two models on one set of examples: whether they can be compared, and what the bootstrap says of them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trelm_ds.evaluation.comparison.bootstrap import mean_over_seeds, resampled_scores, student_tails
from trelm_ds.evaluation.comparison.metrics import (
    F1,
    Accuracy,
    LooseScores,
    Matthews,
    Metrics,
    Pearson,
    RankScores,
    RelationMacro,
    RelationMicro,
    Spearman,
)
from trelm_ds.evaluation.comparison.predictions import Answers, read_predictions
from trelm_ds.evaluation.comparison.sets import LAMA, EvaluatedSet, SetKey

_SAME = 1e-6
_GLUE: dict[str, Metrics] = {
    "accuracy": Accuracy(),
    "f1": F1("1"),
    "matthews": Matthews(),
    "pearson": Pearson(),
    "spearman": Spearman(),
}


class NotCompared(Exception):
    """Why two results are not compared.

    Attributes:
        other_data: whether their figures are of different data, so that neither is the better.
    """

    def __init__(self, reason: str, other_data: bool = False) -> None:
        super().__init__(reason)
        self.other_data = other_data


class Differences(NamedTuple):
    """Model minus reference.

    Attributes:
        measured: by metric.
        resampled: the same of every resample, float64 [resamples].
    """

    measured: dict[str, float]
    resampled: dict[str, np.ndarray]


class _Runs(NamedTuple):
    """A set's predictions, and the metrics that reproduce its figures from them."""

    answers: Answers
    metrics: tuple[Metrics, ...]


def check_same_data(reference: EvaluatedSet, model: EvaluatedSet) -> None:
    """Check, by what the results say, that two models were scored on the same data.

    Raises:
        NotCompared: they were not.
    """
    for name in {**reference.data, **model.data}:
        mine, other = model.data.get(name), reference.data.get(name)
        if mine != other:
            advice = "; evaluate both with --common-with" if model.key.task == LAMA else ""
            what = f"{name}: {_shown(mine)}, the reference's {_shown(other)}"
            raise NotCompared(f"other data ({what}){advice}", other_data=True)


class PairedBootstrap:
    """Compares models with a reference; what it reads and draws does not depend on what else it compares.

    Args:
        resamples: how many are drawn.
        seed: of the draws.
    """

    def __init__(self, resamples: int, seed: int) -> None:
        self._resamples, self._seed = resamples, seed
        self._files: dict[Path, dict[SetKey, Answers]] = {}
        self._checked: dict[tuple[Path, SetKey], _Runs] = {}

    def differences(self, reference: EvaluatedSet, model: EvaluatedSet, metrics: Sequence[str]) -> Differences:
        """Resample examples and seeds, and take the difference of the means over seeds each time.

        Args:
            metrics: names of what both have figures of.

        Raises:
            NotCompared: the data is not the same; predictions are missing, or not those of the figures; a single seed.
            UserError: predictions are damaged.
        """
        check_same_data(reference, model)
        for of in (reference, model):
            if of.predictions is None:
                raise NotCompared(f"no predictions beside {of.result}")
            if of.runs == 1:
                raise NotCompared(f"{of.result} has a single seed, which does not say how much seeds differ")
        mine, other = self._runs(model), self._runs(reference)
        _check_same_examples(other.answers, mine.answers, model.key)
        found = Differences({}, {})
        for kind in mine.metrics:
            if kind in other.metrics and not set(kind.names).isdisjoint(metrics):
                for name, resampled in self._resampled(kind, other.answers, mine.answers, model).items():
                    found.measured[name] = model.figures[name].mean - reference.figures[name].mean
                    found.resampled[name] = resampled
        return found

    def _resampled(
        self, kind: Metrics, reference: Answers, answers: Answers, model: EvaluatedSet
    ) -> dict[str, np.ndarray]:
        both = (reference, answers)
        signatures = [kind.signature(of.gold, run) for of in both for run in of.predicted]
        draws = self._generator(*model.key)
        scores = resampled_scores(kind, signatures, answers.strata, self._resamples, draws)
        sides = scores[: len(reference.predicted)], scores[len(reference.predicted) :]

        # The splits of a task are scored with the same runs, so all draws of seeds are keyed by the task alone.
        tails: np.ndarray | float = 1.0
        if model.runs is not None:
            freedom = len(scores) - len(sides)
            tails = student_tails(freedom, self._resamples, self._generator(model.key.task, "tails"))

        def mean(name: str, side: int) -> np.ndarray:
            seeds = None if model.runs is None else self._generator(model.key.task, "seeds", str(side))
            return mean_over_seeds([of_run[name] for of_run in sides[side]], seeds, tails)

        return {name: mean(name, 1) - mean(name, 0) for name in kind.names}

    def _generator(self, *names: str) -> np.random.Generator:
        return np.random.default_rng([self._seed, zlib.crc32("/".join(names).encode("utf-8", "surrogatepass"))])

    def _runs(self, of: EvaluatedSet) -> _Runs:
        """Read a set's predictions, and check that they give its figures.

        Raises:
            NotCompared: they do not: they are of another evaluation.
        """
        assert of.predictions is not None
        known = self._checked.get((of.result, of.key))
        if known is None:
            if of.predictions not in self._files:
                self._files[of.predictions] = read_predictions(of.predictions, of.key.task)
            known = _checked(of, self._files[of.predictions].get(of.key))
            self._checked[of.result, of.key] = known
        return known


def _check_same_examples(reference: Answers, model: Answers, key: SetKey) -> None:
    if reference.examples == model.examples:
        return
    if key.task == LAMA:
        others = len(set(reference.examples) ^ set(model.examples))
        reason = f"other data ({others} facts were asked of one of the two alone); evaluate both with --common-with"
        raise NotCompared(reason, other_data=True)
    pairs = zip(reference.examples, model.examples, strict=False)
    first = next((number for number, (true, other) in enumerate(pairs) if true != other), None)
    where = f"differ at example {first}" if first is not None else "are not as many"
    raise NotCompared(f"other data (the true labels {where})", other_data=True)


def _checked(of: EvaluatedSet, answers: Answers | None) -> _Runs:
    metrics = _metrics(of)
    if answers is not None and len(answers.examples) == of.examples and _reproduces(of, answers, metrics):
        return _Runs(answers, metrics)
    raise NotCompared(f"{of.predictions} does not give the figures of {of.result}; evaluate again")


def _metrics(of: EvaluatedSet) -> tuple[Metrics, ...]:
    """Give the metrics that have scored a set."""
    if of.key.task == LAMA:
        return tuple(RankScores(name) for name in of.figures)
    if of.key.task == "typing":
        return (LooseScores(),)
    if of.key.task != "relation":
        return tuple(_GLUE[name] for name in of.figures if name in _GLUE)
    negative = of.scoring.get("no_relation")
    return RelationMicro(negative), RelationMacro(negative), Accuracy()


def _reproduces(of: EvaluatedSet, answers: Answers, metrics: tuple[Metrics, ...]) -> bool:
    once = np.ones((1, of.examples))
    for run, predicted in enumerate(answers.predicted):
        for kind in metrics:
            try:
                scores = kind.scores(once, kind.signature(answers.gold, predicted))
            except (
                TypeError,
                ValueError,
                AttributeError,
                OverflowError,
            ):  # labels where numbers should be, and the like
                return False
            for name, value in scores.items():
                if name not in of.figures or len(of.figures[name].values) != len(answers.predicted):
                    return False
                if not abs(of.figures[name].values[run] - value[0]) < _SAME:
                    return False
    return True


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
