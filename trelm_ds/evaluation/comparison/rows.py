"""Which rows the table has, and in which order: those of the paper's Tables 1 to 5, and all others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from trelm_ds.evaluation.comparison.sets import LAMA, EvaluatedSet, SetKey

SECTIONS = ("LAMA", "Entity typing", "Relation extraction", "GLUE")
_PARTS = {"google_re": "Google-RE", "trex": "T-REx", "conceptnet": "ConceptNet", "squad": "SQuAD"}
_PRF = ("precision", "recall", "f1")
# GLUE's nine numbers, in the order of the paper's Table 3.
GLUE = {
    SetKey("mnli", "dev"): "accuracy",
    SetKey("mnli", "dev_mismatched"): "accuracy",
    SetKey("qqp", "dev"): "accuracy",
    SetKey("qnli", "dev"): "accuracy",
    SetKey("sst-2", "dev"): "accuracy",
    SetKey("cola", "dev"): "matthews",
    SetKey("sts-b", "dev"): "pearson",
    SetKey("mrpc", "dev"): "accuracy",
    SetKey("rte", "dev"): "accuracy",
}
_GLUE_TASKS = {
    "mnli": "MNLI",
    "qqp": "QQP",
    "qnli": "QNLI",
    "sst-2": "SST-2",
    "cola": "CoLA",
    "sts-b": "STS-B",
    "mrpc": "MRPC",
    "rte": "RTE",
}
_METRICS = {"p_at_1": "P@1", "p_at_10": "P@10", "mrr": "MRR", "matthews": "Matthews", "pearson": "Pearson"}


class Row(NamedTuple):
    """A line of the table: a metric of a set of examples."""

    key: SetKey
    metric: str

    @property
    def section(self) -> str:
        """The one of `SECTIONS` that it belongs to."""
        return {LAMA: SECTIONS[0], "typing": SECTIONS[1], "relation": SECTIONS[2]}.get(self.key.task, SECTIONS[3])

    @property
    def task(self) -> str:
        """What was scored, as a reader calls it."""
        task, part = self.key
        if task == LAMA:
            name, *group = part.split("/", 2)
            title = _PARTS.get(name, name)
            return f"UHN-{title}" if group == ["name", "uhn"] else " ".join([title, *group]).replace("_", " ")
        if task in ("typing", "relation"):
            return self.section if part == "test" else f"{self.section}, {part}"
        title = _GLUE_TASKS.get(task, task)
        return (
            {"dev": f"{title} (matched)", "dev_mismatched": f"{title} (mismatched)"}.get(part, f"{title} {part}")
            if task == "mnli"
            else title
        )

    @property
    def measure(self) -> str:
        """The metric, as a reader calls it."""
        micro = self.metric.removeprefix("micro_")
        if self.key.task == LAMA:
            return _METRICS.get(micro, micro) + (" over all facts" if micro != self.metric else "")
        return _METRICS.get(self.metric, self.metric.replace("_", " ").replace("f1", "F1"))


MAIN = (
    *(Row(SetKey(LAMA, part + group), "p_at_1") for part in _PARTS for group in ("", "/name/uhn")),
    *(Row(SetKey("typing", "test"), f"micro_{name}") for name in _PRF),
    *(Row(SetKey("relation", "test"), f"{kind}_{name}") for kind in ("micro", "macro") for name in _PRF),
    *(Row(key, metric) for key, metric in GLUE.items()),
)


def rows_of(sets: Iterable[EvaluatedSet], everything: bool) -> list[Row]:
    """List the rows that any model has a figure for, section by section.

    Args:
        everything: beside the main numbers, all other metrics, splits and groups, behind them in their section.
    """
    there = list(dict.fromkeys(Row(of.key, metric) for of in sets for metric in of.figures))
    rows = [row for row in MAIN if row in there]
    if everything:
        rows += [row for row in there if row not in rows]
    return sorted(rows, key=lambda row: SECTIONS.index(row.section))
