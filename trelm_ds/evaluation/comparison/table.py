"""The comparison as data: rows, cells, what is best, what differs significantly, and what readers must know."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trelm_ds.errors import UserError
from trelm_ds.evaluation.comparison.bootstrap import Interval, holm, interval_of
from trelm_ds.evaluation.comparison.compare import Differences, NotCompared, PairedBootstrap, check_same_data
from trelm_ds.evaluation.comparison.find import Model
from trelm_ds.evaluation.comparison.rows import GLUE, Row, rows_of
from trelm_ds.evaluation.comparison.sets import EvaluatedSet, Figure, SetKey
from trelm_ds.evaluation.results import spread
from trelm_ds.progress import ProgressBar

SIGNIFICANT = 0.05


@dataclass
class Comparison:
    """A model against the reference in one row.

    Attributes:
        interval: difference, its 95% interval and p; shares, not percent.
        corrected: p by Holm's method, over all comparisons of the page.
    """

    interval: Interval
    corrected: float = 1.0

    @property
    def significant(self) -> bool:
        """Whether the corrected p is at most 5%."""
        return self.corrected <= SIGNIFICANT

    @property
    def mark(self) -> str:
        """Return "better" or "worse" than the reference if significant, else ""."""
        return ("better" if self.interval.difference > 0 else "worse") if self.significant else ""


@dataclass
class Cell:
    """A model's figure in a row.

    Attributes:
        figure: None where the model has none.
        best: whether no comparable figure of the row is higher, as far as the table shows digits.
        other_data: whether it is of other data than the others of its row.
        comparison: with the reference; None if there is none.
    """

    figure: Figure | None
    best: bool = False
    other_data: bool = False
    comparison: Comparison | None = None

    @property
    def mean(self) -> str:
        """The mean in percent, as the table shows it."""
        return "" if self.figure is None else f"{100 * self.figure.mean:.1f}"


@dataclass
class Line:
    """A row of the table with its cells, one for each model.

    Attributes:
        section, task, measure: what a reader calls it.
        examples: how many, in words; of other numbers where models have other data.
        seeds: how many, in words.
        baseline: score of the most frequent answer.
    """

    section: str
    task: str
    measure: str
    examples: str
    seeds: str
    baseline: float | None
    cells: list[Cell]


@dataclass
class Table:
    """All that the page says.

    Attributes:
        models: name and folders of each column.
        reference: place of the reference among them.
        notes: what else readers must know, a line each.
    """

    models: list[tuple[str, str]]
    reference: int
    lines: list[Line]
    comparisons: int
    resamples: int
    seed: int
    notes: list[str] = field(default_factory=list)


def compare_models(
    models: Sequence[Model],
    reference: str | None = None,
    resamples: int = 5000,
    seed: int = 1,
    everything: bool = False,
) -> Table:
    """Put the models' figures side by side and compare each with the reference.

    Args:
        models: as `find_models` finds them.
        reference: name of one of them; default: the first.
        resamples: of the bootstrap.
        seed: of its draws.
        everything: show all metrics, splits and groups, not the main numbers alone.

    Raises:
        UserError: no model has the reference's name; predictions are damaged.
    """
    names = [model.name for model in models]
    if reference is not None and reference not in names:
        raise UserError(f"--reference: '{reference}' is none of the models: {', '.join(names)}")
    at = 0 if reference is None else names.index(reference)
    table = Table([(model.name, ", ".join(model.folders)) for model in models], at, [], 0, resamples, seed)
    _Builder(models, at, table).build(rows_of((of for model in models for of in model.sets.values()), everything))
    return table


class _Builder:
    """Fills a table."""

    def __init__(self, models: Sequence[Model], reference: int, table: Table) -> None:
        self._models, self._reference, self._table = models, reference, table
        self._bootstrap = PairedBootstrap(table.resamples, table.seed)
        self._notes: dict[str, list[str]] = {}  # what it is about, by what is to be said
        self._found: dict[tuple[int, SetKey], Differences | NotCompared] = {}

    def build(self, rows: list[Row]) -> None:
        by_set: dict[SetKey, list[str]] = {}
        for row in rows:
            by_set.setdefault(row.key, []).append(row.metric)
        with ProgressBar("bootstrap", len(by_set) * (len(self._models) - 1)) as bar:
            for key, metrics in by_set.items():
                for number in self._others():
                    self._found[number, key] = self._differences(number, key, metrics)
                    bar.advance()
        for row in rows:
            self._table.lines.append(self._line(row))
        if average := self._average():
            self._table.lines.append(average)
        self._correct()
        self._table.notes += [f"{', '.join(dict.fromkeys(about))}: {note}" for note, about in self._notes.items()]

    def _others(self) -> list[int]:
        return [number for number in range(len(self._models)) if number != self._reference]

    def _differences(self, number: int, key: SetKey, metrics: list[str]) -> Differences | NotCompared:
        model, reference = self._models[number], self._models[self._reference]
        mine, other = model.sets.get(key), reference.sets.get(key)
        if mine is None or other is None:
            if mine is not None:
                self._note(f"not compared, since {reference.name} has no such result", Row(key, "").task)
            return NotCompared("")
        common = [name for name in metrics if name in mine.figures and name in other.figures]
        try:
            return self._bootstrap.differences(other, mine, common)
        except NotCompared as reason:
            task = Row(key, "").task
            self._note(f"not compared with {reference.name}: {reason}", f"{model.name} on {task}")
            return reason

    def _note(self, text: str, about: str) -> None:
        self._notes.setdefault(text, []).append(about)

    # --- Lines ---
    def _line(self, row: Row) -> Line:
        sets = [model.sets.get(row.key) for model in self._models]
        there = [of if of is not None and row.metric in of.figures else None for of in sets]
        cells = [Cell(of.figures[row.metric] if of else None) for of in there]
        standard = there[self._reference] or next(of for of in there if of is not None)
        for number, (cell, of) in enumerate(zip(cells, there, strict=True)):
            found = self._found.get((number, row.key))
            if of is None:
                continue
            if isinstance(found, Differences):
                if row.metric in found.measured:
                    cell.comparison = _compared(found.measured[row.metric], found.resampled[row.metric])
            else:
                cell.other_data = (found is not None and found.other_data) or not _same_data(standard, of)
        _mark_best(cells)
        known = [of for of in there if of is not None]
        return Line(
            section=row.section,
            task=row.task,
            measure=row.measure,
            examples=_words([of.examples for of in known]),
            seeds=_words(["-" if of.runs is None else of.runs for of in known]),
            baseline=standard.baseline[row.metric],
            cells=cells,
        )

    def _average(self) -> Line | None:
        """Average GLUE's numbers over the tasks that all models have that have any; None for fewer than two."""
        numbers = {number: keys for number, model in enumerate(self._models) if (keys := _glue_numbers(model))}
        common = [key for key in GLUE if numbers and all(key in of for of in numbers.values())]
        if len(common) < 2:
            return None
        some = [key for key in GLUE if key not in common and any(key in of for of in numbers.values())]
        if some:
            tasks = ", ".join(Row(key, "").task for key in some)
            self._note(f"without {tasks}, which not all models have", "GLUE average")
        standard = self._reference if self._reference in numbers else next(iter(numbers))
        cells = [
            self._average_cell(number, standard, common) if number in numbers else Cell(None)
            for number in range(len(self._models))
        ]
        _mark_best(cells)
        baselines = [self._models[standard].sets[key].baseline[GLUE[key]] for key in common]
        return Line(
            section="GLUE",
            task="average",
            measure="of nine numbers" if len(common) == len(GLUE) else f"of {len(common)} of the nine numbers",
            examples="",
            seeds=_words([self._models[number].sets[key].runs for number in numbers for key in common]),
            baseline=sum(baselines) / len(baselines),
            cells=cells,
        )

    def _average_cell(self, number: int, standard: int, keys: list[SetKey]) -> Cell:
        cell = Cell(self._average_figure(number, keys))
        found = [self._found.get((number, key)) for key in keys]
        each = [(of, GLUE[key]) for of, key in zip(found, keys, strict=True) if isinstance(of, Differences)]
        if len(each) == len(keys):
            # Tasks are resampled apart, so the mean of their differences is a resample of the averages' difference.
            measured = [of.measured[metric] for of, metric in each]
            cell.comparison = _compared(float(np.mean(measured)), np.mean([of.resampled[m] for of, m in each], axis=0))
        else:
            same = (_same_data(self._models[standard].sets[key], self._models[number].sets[key]) for key in keys)
            refused = any(isinstance(of, NotCompared) and of.other_data for of in found)
            cell.other_data = refused or not all(same)
        return cell

    def _average_figure(self, number: int, keys: list[SetKey]) -> Figure:
        """Average seed by seed, which takes as many seeds in every task."""
        figures = [self._models[number].sets[key].figures[GLUE[key]] for key in keys]
        if len({len(figure.values) for figure in figures}) == 1:
            by_seed = zip(*(figure.values for figure in figures), strict=True)
            return Figure.of(spread([sum(values) / len(values) for values in by_seed]))
        self._note("its tasks have other numbers of seeds, so the average has no spread", self._models[number].name)
        mean = sum(figure.mean for figure in figures) / len(figures)
        return Figure(mean, None, (mean,))

    # --- Significance ---
    def _correct(self) -> None:
        made = [cell.comparison for line in self._table.lines for cell in line.cells if cell.comparison]
        for comparison, corrected in zip(made, holm([one.interval.p for one in made]), strict=True):
            comparison.corrected = corrected
        self._table.comparisons = len(made)
        needed = math.ceil(len(made) / SIGNIFICANT) - 1  # with which the smallest p, corrected, is 5%
        if made and self._table.resamples < needed:
            self._table.notes.append(
                f"{self._table.resamples} resamples cannot show a difference among {len(made)} comparisons; "
                f"take --resamples {needed} or more"
            )


def _compared(measured: float, resampled: np.ndarray) -> Comparison:
    return Comparison(interval_of(measured, resampled))


def _same_data(standard: EvaluatedSet, of: EvaluatedSet) -> bool:
    try:
        check_same_data(standard, of)
    except NotCompared:
        return False
    return True


def _glue_numbers(model: Model) -> list[SetKey]:
    return [key for key, metric in GLUE.items() if key in model.sets and metric in model.sets[key].figures]


def _mark_best(cells: list[Cell]) -> None:
    """Mark the highest figures, equal ones all, where there are two or more to choose from."""
    comparable = [cell for cell in cells if cell.figure and not cell.other_data]
    if len(comparable) > 1:
        best = max(float(cell.mean) for cell in comparable)
        for cell in comparable:
            cell.best = float(cell.mean) == best


def _words(values: list[object]) -> str:
    return " / ".join(str(value) for value in dict.fromkeys(values))
