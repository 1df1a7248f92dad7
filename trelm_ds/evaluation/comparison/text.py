"""How numbers and texts of the table are spelled, for all its writers."""

from __future__ import annotations

from trelm_ds.evaluation.comparison.sets import one_line
from trelm_ds.evaluation.comparison.table import SIGNIFICANT, Cell, Comparison, Line, Table

MARKS = {"better": "▲", "worse": "▼", "": ""}
OTHER_DATA = "≠"


def plain(text: str) -> str:
    """Return a text of files as one line that no terminal obeys."""
    return one_line(text) or "(no name)"


def score(cell: Cell) -> str:
    """Format mean and standard deviation in percent."""
    if cell.figure is None:
        return "-"
    return cell.mean if cell.figure.std is None else f"{cell.mean} ± {100 * cell.figure.std:.1f}"


def marks(cell: Cell) -> str:
    """Return the signs behind a figure."""
    return (MARKS[cell.comparison.mark] if cell.comparison else "") + (OTHER_DATA if cell.other_data else "")


def percent(share: float | None) -> str:
    """Format a share in percent."""
    return "-" if share is None else f"{100 * share:.1f}"


def points(difference: float) -> str:
    """Format a difference in percentage points, with its sign."""
    return f"{100 * difference:+.2f}".replace("-0.00", "+0.00")


def interval(comparison: Comparison) -> str:
    """Format the bounds of a 95% interval."""
    return f"{points(comparison.interval.low)} to {points(comparison.interval.high)}"


def p_value(p: float) -> str:
    """Format a p-value; those of many resamples may be small."""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1g}"


def what(line: Line) -> str:
    """Name a row by section and task."""
    return plain(line.task if line.task.startswith(line.section) else f"{line.section} {line.task}")


def title(table: Table) -> str:
    """Return the heading."""
    return "Comparison of " + ("1 model" if len(table.models) == 1 else f"{len(table.models)} models")


def legend(table: Table) -> list[str]:
    """Say what the figures are and how they were compared, a sentence or two a paragraph."""
    said = ["Percent; mean ± standard deviation over seeds. Best of a row in bold, equal ones all."]
    if any(cell.other_data for line in table.lines for cell in line.cells):
        said.append(f"{OTHER_DATA} is of other data than its row and takes no part.")
    if table.comparisons:
        times = "1 comparison" if table.comparisons == 1 else f"{table.comparisons} comparisons"
        reference = plain(table.models[table.reference][0])
        said.append(
            f"{MARKS['better']} significantly better, {MARKS['worse']} worse than {reference}: paired bootstrap over "
            f"examples and seeds ({table.resamples} resamples, seed {table.seed}), p at most "
            f"{SIGNIFICANT:g} after Holm's correction for the {times} made. Intervals are of each comparison alone."
        )
    elif len(table.models) > 1:
        said.append("No two results could be compared for significance.")
    return said
