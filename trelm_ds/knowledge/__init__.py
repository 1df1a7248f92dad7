"""The knowledge graph (Wikidata5M as compressed sparse rows), the long tail, and which mentions get knowledge."""

from trelm_ds.knowledge.graph import KnowledgeGraph
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
from trelm_ds.knowledge.wikidata5m import GraphFile, Wikidata5M, find_wikidata5m, read_names, read_triples

__all__ = [
    "STRATEGIES",
    "EntityFrequencies",
    "GraphFile",
    "KnowledgeGraph",
    "MentionSelector",
    "Selection",
    "Strategy",
    "Wikidata5M",
    "cosine_bar",
    "cosine_histogram",
    "find_wikidata5m",
    "histogram_values",
    "long_tail_words",
    "read_names",
    "read_triples",
    "semantic_importance",
]
