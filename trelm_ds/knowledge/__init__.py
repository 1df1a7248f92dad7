"""The knowledge graph (Wikidata5M as compressed sparse rows), the long tail, and which mentions get knowledge."""

from trelm_ds.knowledge.graph import KnowledgeGraph, find_wikidata5m, read_names
from trelm_ds.knowledge.long_tail import EntityFrequencies, long_tail_words
from trelm_ds.knowledge.selection import (
    STRATEGIES,
    MentionSelector,
    Selection,
    Strategy,
    cosine_bar,
    cosine_histogram,
    histogram_values,
    semantic_importance,
)

__all__ = [
    "STRATEGIES",
    "EntityFrequencies",
    "KnowledgeGraph",
    "MentionSelector",
    "Selection",
    "Strategy",
    "cosine_bar",
    "cosine_histogram",
    "find_wikidata5m",
    "histogram_values",
    "long_tail_words",
    "read_names",
    "semantic_importance",
]
