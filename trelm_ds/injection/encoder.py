"""Source `encoder`: names and descriptions through the model as it is."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trelm_ds.injection.source import InjectionSource, SourceContext
from trelm_ds.knowledge.tables import local_memories
from trelm_ds.model import Batch
from trelm_ds.ragged import offsets_of


class NameEncoder(InjectionSource):
    """The mean last-layer state over the tokens of name and description; 0 for a row without a name.

    `injection.max_name_tokens` limits the tokens of both together.
    """

    def __init__(self, context: SourceContext) -> None:
        self._engine, self._info = context.engine, context.tokenizer
        self._names, self._entities = context.index.names, context.index.vector_entities
        longest = context.engine.module.config.max_position_embeddings - 2
        self._max_tokens = min(context.settings.max_name_tokens, longest)

    @torch.no_grad()
    def __call__(self, rows: Tensor) -> Tensor:
        documents = [np.array([self._info.cls, *self._tokens(row), self._info.sep]) for row in rows.tolist()]
        # This rank may have no row left where others have.
        documents = documents or [np.array([self._info.cls, self._info.sep])]
        lengths = np.array([len(tokens) for tokens in documents])
        cu_seqlens = torch.from_numpy(offsets_of(lengths).astype(np.int32))
        device = self._engine.device
        ids = torch.from_numpy(np.concatenate(documents).astype(np.int64)).to(device)
        batch = Batch.of_documents(ids, cu_seqlens.to(device), int(lengths.max()))
        training = self._engine.training
        self._engine.eval()
        states = self._engine(batch).states
        self._engine.train(training)
        inside = torch.stack([cu_seqlens[:-1] + 1, cu_seqlens[1:] - 1], dim=1).long()
        return local_memories(states, inside)[: len(rows)]

    def _tokens(self, row: int) -> list[int]:
        names, entities = self._names, self._entities
        if row >= len(entities):
            begin, end = names.relation_offsets[row - len(entities) :][:2]
            return names.relation_tokens[begin:end][: self._max_tokens].tolist()
        begin, end = names.entity_offsets[entities[row] :][:2]
        first, last = names.text_offsets[entities[row] :][:2]
        return [*names.entity_tokens[begin:end].tolist(), *names.text_tokens[first:last].tolist()][: self._max_tokens]
