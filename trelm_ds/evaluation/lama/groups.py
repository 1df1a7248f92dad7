"""Groups of facts that are also scored apart: how often the corpus mentions the subject, how telling its name is.

A grouping gives a probe the name of its group, or None. Fields of the data's own records, such as `tier`, are groupings
too (`data.GROUPINGS`). Each is reported as `groups[grouping][group]` of its part.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from trelm_ds.errors import UserError
from trelm_ds.evaluation.lama.probes import Probe
from trelm_ds.importance import load_frequencies

Grouping = Callable[[Probe], str | None]


def subject_frequency(dataset: Path) -> Grouping:
    """Group facts by how often a dataset mentions the subject: `long_tail` if less often than its mean entity.

    That is the long tail of training (paper 3.2); the others are `frequent`. A subject that the corpus never mentions
    is in the long tail, one without a Wikidata id in neither group.

    Args:
        dataset: folder of `trelm prepare`.

    Raises:
        UserError: the folder is no prepared dataset.
    """
    if not (dataset / "manifest.json").is_file():
        raise UserError(
            f"--dataset: {dataset} is no prepared dataset (no manifest.json); give a folder of `trelm prepare`"
        )
    frequencies = load_frequencies(dataset)

    def group(probe: Probe) -> str | None:
        if probe.fact.qid is None:
            return None
        count = frequencies.lookup(np.array([probe.fact.qid]), frequencies.counts)[0]
        return "long_tail" if count < frequencies.mean else "frequent"

    return group


def apply(groupings: dict[str, Grouping], probes: list[Probe]) -> None:
    """Put every probe into its groups."""
    for name, grouping in groupings.items():
        for probe in probes:
            if (group := grouping(probe)) is not None:
                probe.groups[name] = group
