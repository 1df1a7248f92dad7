"""What a source gets in these tests: a dataset's index without an engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trelm_ds.batches import KnowledgeIndex
from trelm_ds.config import Config, InjectionConfig, SelectionConfig
from trelm_ds.corpus import TokenizerInfo
from trelm_ds.distributed import Ranks
from trelm_ds.injection import SourceContext, fill_vectors
from trelm_ds.knowledge.tables import TableGroup, VectorTable
from trelm_ds.shards import Manifest

CPU, D = torch.device("cpu"), 8


def open_context(dataset: Path, ranks: Ranks, **injection: Any) -> SourceContext:
    """A context of a prepared dataset, every entity chosen; the engine is missing."""
    config = Config(selection=SelectionConfig(strategy="all"), injection=InjectionConfig(**injection))
    info = TokenizerInfo(**Manifest.load(dataset).tokenizer)
    index = KnowledgeIndex.open(dataset, config)
    word = torch.randn(info.vocab_size, D, generator=torch.Generator().manual_seed(0))
    engine: Any = None
    return SourceContext(config.injection, index, info, engine, word, ranks, seed=0)


def with_entities(context: SourceContext, rows: list[int]) -> SourceContext:
    """The same with other rows of the graph's entities in the table."""
    return replace(context, index=replace(context.index, vector_entities=np.array(rows, dtype=np.int32)))


def filled(context: SourceContext) -> Tensor:
    """float32 [V_e + R, D]: the table as the source of the settings fills it; on several ranks, this one's rows."""
    n_entities, n_relations = len(context.index.vector_entities), context.index.n_relations
    table = VectorTable(n_entities, n_relations, D, torch.float32, CPU, TableGroup.of_all_ranks(CPU))
    fill_vectors(table, context)
    return table.local
