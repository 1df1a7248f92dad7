"""Where the vectors of entities and relations come from (`injection.source`): one file and one registration each.

`registry` lists the sources, `source` says what one implements. Importing this package loads no torch.
"""

from trelm_ds.injection.registry import NO_INJECTION, SOURCES, Registration, file_problem, problem_of, source_class
from trelm_ds.injection.source import InjectionSource, SourceContext, fill_vectors

__all__ = [
    "NO_INJECTION",
    "SOURCES",
    "InjectionSource",
    "Registration",
    "SourceContext",
    "file_problem",
    "fill_vectors",
    "problem_of",
    "source_class",
]
