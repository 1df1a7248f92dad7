"""The knowledge graph (Wikidata5M in CSR form), its names, long-tail statistics, and the selection of mentions.

The tables of a training run are in `trelm_ds.knowledge.tables`: they need torch, which preparation does without.
"""

from trelm_ds.knowledge.facts import TripleDraw, Triples
from trelm_ds.knowledge.graph import KnowledgeGraph
from trelm_ds.knowledge.held_out import draw_held_out, read_held_out, write_held_out
from trelm_ds.knowledge.long_tail import EntityFrequencies, long_tail_words
from trelm_ds.knowledge.names import Names, encode_names
from trelm_ds.knowledge.selection import (
    STRATEGIES,
    MentionSelector,
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
    "Names",
    "Strategy",
    "TripleDraw",
    "Triples",
    "Wikidata5M",
    "cosine_bar",
    "cosine_histogram",
    "draw_held_out",
    "encode_names",
    "find_wikidata5m",
    "histogram_values",
    "long_tail_words",
    "read_held_out",
    "read_names",
    "read_triples",
    "semantic_importance",
    "write_held_out",
]
