"""Tables sharded over the ranks of a training run: entity and relation vectors, and the memory bank."""

from trelm_ds.knowledge.tables.memory_bank import (
    Memories,
    MemoryBank,
    MemoryLookup,
    MemoryUpdate,
    local_memories,
    memory_lambda,
    memory_window,
)
from trelm_ds.knowledge.tables.sharded_table import Lookup, Route, ShardedTable, TableGroup
from trelm_ds.knowledge.tables.vectors import VectorTable, mean_of_tokens, token_means, word_statistics

__all__ = [
    "Lookup",
    "Memories",
    "MemoryBank",
    "MemoryLookup",
    "MemoryUpdate",
    "Route",
    "ShardedTable",
    "TableGroup",
    "VectorTable",
    "local_memories",
    "mean_of_tokens",
    "memory_lambda",
    "memory_window",
    "token_means",
    "word_statistics",
]
