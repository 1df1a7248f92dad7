"""The table in Markdown, which a terminal shows as well as a forge does."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.cells import cell_len

from trelm_ds.evaluation.comparison import text
from trelm_ds.evaluation.comparison.table import Table

_SPECIAL = re.compile(r"([\\`*\[\]<>|&~$])|(?<![^\W_])(_)|(_)(?![^\W_])")  # underscores within words mean nothing


def to_markdown(table: Table) -> str:
    """Write the table, the differences and the notes."""
    parts = [f"# {text.title(table)}", *map(escape, text.legend(table)), _scores(table)]
    if table.comparisons:
        parts += [f"## Differences to {_name(table, table.reference)}", "Percentage points.", _differences(table)]
    folders = (f"- {_name(table, number)}: {escape(text.plain(of[1]))}" for number, of in enumerate(table.models))
    parts += ["## Models", "\n".join(folders)]
    if table.notes:
        parts += ["## Notes", "\n".join(f"- {escape(text.plain(note))}" for note in table.notes)]
    return "\n\n".join(parts) + "\n"


def escape(line: str) -> str:
    """Put a backslash before what Markdown would take for markup."""
    return _SPECIAL.sub(lambda found: f"\\{found.group()}", line)


def _name(table: Table, number: int) -> str:
    return escape(text.plain(table.models[number][0]))


def _scores(table: Table) -> str:
    names = [_name(table, number) for number in range(len(table.models))]
    header = ["task", "metric", "examples", "seeds", "most frequent", *names]
    rows = []
    for line in table.lines:
        cells = []
        for cell in line.cells:
            score = f"**{text.score(cell)}**" if cell.best else text.score(cell)
            cells.append(f"{score} {text.marks(cell)}".rstrip())
        about = [escape(text.what(line)), escape(text.plain(line.measure)), line.examples, line.seeds]
        rows.append([*about, text.percent(line.baseline), *cells])
    return _pipes(header, rows, left=2)


def _differences(table: Table) -> str:
    header = ["task", "metric", "model", "difference", "95% interval", "p", "p (Holm)", ""]
    rows = []
    for line in table.lines:
        for number, cell in enumerate(line.cells):
            if (of := cell.comparison) is not None:
                about = [escape(text.what(line)), escape(text.plain(line.measure)), _name(table, number)]
                numbers = [text.points(of.interval.difference), text.interval(of)]
                tests = [text.p_value(of.interval.p), text.p_value(of.corrected), text.MARKS[of.mark]]
                rows.append([*about, *numbers, *tests])
    return _pipes(header, rows, left=3)


def _pipes(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """Align a table; the first `left` columns to the left, numbers to the right."""
    widths = [max(3, *(cell_len(row[column]) for row in (header, *rows))) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = []
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            space = " " * (width - cell_len(cell))
            padded.append(cell + space if column < left else space + cell)
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if column < left else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join([line(header), line(rule), *map(line, rows)])
