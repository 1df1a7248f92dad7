"""The values of `injection.source`, and where each is implemented. Names only: settings are checked without torch."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import Any, NamedTuple

NO_INJECTION = "none"  # a mention keeps its own word embeddings in Eq. 7


class Registration(NamedTuple):
    """One injection source.

    Attributes:
        target: "module:Class"; the module is imported when a run needs it.
        reads_file: whether it reads `injection.file`.
    """

    target: str
    reads_file: bool = False


SOURCES = {
    "encoder": Registration("trelm_ds.injection.encoder:NameEncoder"),
    "alias_mean": Registration("trelm_ds.injection.alias_mean:AliasMean"),
    "file": Registration("trelm_ds.injection.file:VectorFile", reads_file=True),
    "transe": Registration("trelm_ds.injection.transe:TransE", reads_file=True),
}


def source_class(name: str) -> Any:
    """Import the `InjectionSource` of a name. `none` has the encoder's: decoder product needs relations even so."""
    registration = SOURCES["encoder" if name == NO_INJECTION else name]
    module, _, attribute = registration.target.partition(":")
    return getattr(import_module(module), attribute)


def problem_of(name: str) -> str | None:
    """Say what is wrong with a value of `injection.source`; None if nothing is."""
    names = [*SOURCES, NO_INJECTION]
    if name in names:
        return None
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"must be one of {', '.join(names)}, got {name}{hint}"


def file_problem(name: str, file: str | None) -> str | None:
    """Say whether `injection.file` is missing for a known source, or given to one that does not read it."""
    readers = [source for source, registration in SOURCES.items() if registration.reads_file]
    if (name in readers) == (file is not None):
        return None
    if file is None:
        return f"required by injection.source {name}"
    return f"goes with injection.source {' or '.join(readers)}, and only with that"
