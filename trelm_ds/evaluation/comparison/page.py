"""The table as one HTML file: no network, no script, light and dark, wide and narrow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from itertools import groupby

from trelm_ds import __version__
from trelm_ds.evaluation.comparison import text
from trelm_ds.evaluation.comparison.style import STYLE
from trelm_ds.evaluation.comparison.table import Cell, Comparison, Line, Table

_COLORS = 8  # that the style has for models


def to_html(table: Table) -> str:
    """Write table, plot of the differences and notes."""
    heading = text.title(table)
    body = [
        f"<h1>{escape(heading)}</h1>",
        *(f"<p>{escape(line)}</p>" for line in text.legend(table)),
        *_scores(table),
        *(_forest(table) if table.comparisons else []),
        *_notes(table),
        f"<footer>trelm-ds {escape(__version__)}</footer>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(heading)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _shown(words: str) -> str:
    return escape(text.plain(words))


# --- Scores ---
def _scores(table: Table) -> Iterator[str]:
    names = "".join(
        f'<th scope="col" class="model">{_swatch(table, number)}{_shown(name)}{_note(table, number)}</th>'
        for number, (name, _) in enumerate(table.models)
    )
    about = "".join(f'<th scope="col">{name}</th>' for name in ("most frequent", "seeds", "examples"))
    header = f'<th scope="col">task</th><th scope="col" class="text">metric</th>{names}{about}'
    yield f'<div class="wide"><table>\n<thead><tr>{header}</tr></thead>'
    for section, lines in groupby(table.lines, key=lambda line: line.section):
        columns = 5 + len(table.models)
        yield f'<tbody><tr><th class="section" colspan="{columns}" scope="rowgroup">{escape(section)}</th></tr>'
        for line in lines:
            what = f'<th scope="row">{_task(line)}</th><td class="text">{_shown(line.measure)}</td>'
            cells = "".join(_cell(table, line, number, cell) for number, cell in enumerate(line.cells))
            numbers = (text.percent(line.baseline), line.seeds, line.examples)
            yield f"<tr>{what}{cells}" + "".join(f'<td class="about">{number}</td>' for number in numbers) + "</tr>"
        yield "</tbody>"
    yield "</table></div>"


def _task(line: Line) -> str:
    """Name a task below the heading of its section."""
    return _shown(line.task.removeprefix(line.section).removeprefix(", ") or "test")


def _cell(table: Table, line: Line, number: int, cell: Cell) -> str:
    if cell.figure is None:
        return "<td>-</td>"
    score = f"<strong>{text.score(cell)}</strong>" if cell.best else text.score(cell)
    kind = f' class="{cell.comparison.mark}"' if cell.comparison and cell.comparison.mark else ""
    tip = f'<span class="tip" role="tooltip">{escape(_tip(table, line, number, cell))}</span>'
    return f'<td tabindex="0"{kind}>{score} {text.marks(cell)}{tip}</td>'


def _tip(table: Table, line: Line, number: int, cell: Cell) -> str:
    """Say what stands behind a figure."""
    assert cell.figure is not None
    said = f"{text.plain(table.models[number][0])}, {text.what(line)}, {text.plain(line.measure)}: "
    if len(cell.figure.values) > 1:
        said += "seeds " + ", ".join(f"{100 * value:.2f}" for value in cell.figure.values)
    else:
        said += f"{100 * cell.figure.mean:.2f}"
    if cell.comparison:
        said += f"; {_against(table, cell.comparison)}"
    return said + ("; of other data than its row" if cell.other_data else "")


def _against(table: Table, of: Comparison) -> str:
    reference = text.plain(table.models[table.reference][0])
    numbers = f"{text.points(of.interval.difference)} points, 95% interval {text.interval(of)}"
    return f"to {reference} {numbers}, p {text.p_value(of.interval.p)}, by Holm {text.p_value(of.corrected)}"


# --- Differences ---
class _Scale:
    """Places of differences on a track, in percent of its width."""

    def __init__(self, lines: list[Line]) -> None:
        of = [cell.comparison.interval for line in lines for cell in line.cells if cell.comparison]
        low, high = min(0.0, *(one.low for one in of)), max(0.0, *(one.high for one in of))
        if high - low < 1e-4:
            low, high = -0.01, 0.01
        margin = 0.05 * (high - low)
        self._low, self._high = low - margin, high + margin

    def at(self, difference: float) -> str:
        return f"{100 * (difference - self._low) / (self._high - self._low):.2f}%"

    @property
    def ticks(self) -> list[float]:
        """Round numbers, three to eight of them."""
        most = (self._high - self._low) / 3
        unit = 10 ** math.floor(math.log10(most))
        step = max(unit * of for of in (1, 2, 5) if unit * of <= most)
        return [number * step for number in range(math.ceil(self._low / step), math.floor(self._high / step) + 1)]


def _forest(table: Table) -> Iterator[str]:
    reference = _shown(table.models[table.reference][0])
    yield f"<h2>Differences to {reference}</h2>"
    yield "<p>Percentage points with 95% intervals; filled where significant after Holm's correction.</p>"
    for section, group in groupby(table.lines, key=lambda line: line.section):
        lines = list(group)
        if not any(cell.comparison for line in lines for cell in line.cells):
            continue
        scale = _Scale(lines)
        yield f'<section class="forest"><h3>{escape(section)}</h3>'
        for line in lines:
            what = f"{_task(line)} <small>{_shown(line.measure)}</small>"
            for number, cell in enumerate(line.cells):
                if cell.comparison:
                    yield _difference(table, number, cell.comparison, what, scale)
                    what = ""  # once for all models
        yield f'<div class="row axis"><span></span><span></span>{_axis(scale)}<span></span></div></section>'


def _difference(table: Table, number: int, of: Comparison, what: str, scale: _Scale) -> str:
    name = _shown(table.models[number][0])
    low, middle, high = (scale.at(value) for value in (of.interval.low, of.interval.difference, of.interval.high))
    zero = scale.at(0)
    drawn = (
        f'<line class="zero" x1="{zero}" x2="{zero}" y1="0" y2="100%"/>'
        f'<line class="interval" x1="{low}" x2="{high}" y1="50%" y2="50%"/>'
        f'<circle class="{"significant" if of.significant else "open"}" cx="{middle}" cy="50%" r="4.5"/>'
    )
    return (
        f'<div class="row c{number % _COLORS}"><span class="what">{what}</span>'
        f'<span class="who">{_swatch(table, number)}{name}</span>'
        f'<svg class="track" role="img"><title>{name} {escape(_against(table, of))}</title>{drawn}</svg>'
        f'<span class="number">{text.points(of.interval.difference)} <small>{text.interval(of)}</small></span></div>'
    )


def _axis(scale: _Scale) -> str:
    labels = "".join(
        f'<text x="{scale.at(tick)}" y="14" text-anchor="middle">{100 * tick:+g}</text>'.replace(">+0<", ">0<")
        for tick in scale.ticks
    )
    return f'<svg class="track" aria-hidden="true">{labels}</svg>'


def _swatch(table: Table, number: int) -> str:
    """Give a model the mark of its color; the reference is in no plot."""
    return "" if number == table.reference else f'<i class="swatch c{number % _COLORS}"></i>'


def _note(table: Table, number: int) -> str:
    return " <small>reference</small>" if number == table.reference and table.comparisons else ""


# --- Notes ---
def _notes(table: Table) -> Iterator[str]:
    yield "<h2>Models</h2>\n<ul>"
    yield from (f"<li>{_shown(name)}: <code>{_shown(folders)}</code></li>" for name, folders in table.models)
    yield "</ul>"
    if table.notes:
        yield "<h2>Notes</h2>\n<ul>"
        yield from (f"<li>{_shown(note)}</li>" for note in table.notes)
        yield "</ul>"
