"""The knowledge graph (Wikidata5M as compressed sparse rows) and its names, the long tail, which mentions get
knowledge, and the tables that they get it from: vectors of entities and relations, and the memory bank."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trelm_ds.knowledge.facts import TripleDraw, Triples
from trelm_ds.knowledge.graph import KnowledgeGraph
from trelm_ds.knowledge.long_tail import EntityFrequencies, long_tail_words
from trelm_ds.knowledge.names import Names, encode_names
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
from trelm_ds.ragged import gather, lengths

if TYPE_CHECKING:
    from trelm_ds.knowledge.memory_bank import (
        Memories,
        MemoryBank,
        MemoryLookup,
        MemoryUpdate,
        local_memories,
        memory_lambda,
        memory_window,
    )
    from trelm_ds.knowledge.sharded_table import Lookup, Route, ShardedTable, TableGroup
    from trelm_ds.knowledge.vectors import VectorTable, mean_of_tokens, vectors_from_file, word_statistics
else:
    _NEED_TORCH = {
        "memory_bank": (
            "Memories",
            "MemoryBank",
            "MemoryLookup",
            "MemoryUpdate",
            "local_memories",
            "memory_lambda",
            "memory_window",
        ),
        "sharded_table": ("Lookup", "Route", "ShardedTable", "TableGroup"),
        "vectors": ("VectorTable", "mean_of_tokens", "vectors_from_file", "word_statistics"),
    }

    def __getattr__(name: str) -> Any:
        """Imports what needs torch on first use: preparation's many processes read the graph and do without."""
        for module, names in _NEED_TORCH.items():
            if name in names:
                return getattr(import_module(f"{__name__}.{module}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "STRATEGIES",
    "EntityFrequencies",
    "GraphFile",
    "KnowledgeGraph",
    "Lookup",
    "Memories",
    "MemoryBank",
    "MemoryLookup",
    "MemoryUpdate",
    "MentionSelector",
    "Names",
    "Route",
    "Selection",
    "ShardedTable",
    "Strategy",
    "TableGroup",
    "TripleDraw",
    "Triples",
    "VectorTable",
    "Wikidata5M",
    "cosine_bar",
    "cosine_histogram",
    "encode_names",
    "find_wikidata5m",
    "gather",
    "histogram_values",
    "lengths",
    "local_memories",
    "long_tail_words",
    "mean_of_tokens",
    "memory_lambda",
    "memory_window",
    "read_names",
    "read_triples",
    "semantic_importance",
    "vectors_from_file",
    "word_statistics",
]
