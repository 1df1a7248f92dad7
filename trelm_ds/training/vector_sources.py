"""Where the vectors of entities and relations come from (injection.source), given the model as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from trelm_ds.batches import KnowledgeIndex
from trelm_ds.corpus import TokenizerInfo
from trelm_ds.distributed import import_deepspeed
from trelm_ds.errors import UserError
from trelm_ds.knowledge.tables import local_memories, mean_of_tokens
from trelm_ds.model import Batch
from trelm_ds.ragged import gather, offsets_of

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

T = TypeVar("T")


class NameEncoder:
    """Vectors of the table's rows: name and description through the encoder as it is, mean over their tokens.

    Args:
        engine: around the model; every rank must call as often, because ZeRO-3 gathers weights.
        index: which rows the table has.
        info: of the tokenizer.
        max_tokens: of name and description together.
    """

    def __init__(self, engine: DeepSpeedEngine, index: KnowledgeIndex, info: TokenizerInfo, max_tokens: int) -> None:
        self._engine, self._info = engine, info
        self._names, self._entities = index.names, index.vector_entities
        self._max_tokens = min(max_tokens, engine.module.config.max_position_embeddings - 2)

    @torch.no_grad()
    def __call__(self, rows: Tensor) -> Tensor:
        """Vectors of table rows int64 [n]: float32 [n, D]; 0 for one without a name."""
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


class FromFile:
    """Vectors of a file, with zeros in the place of what cannot be read: other ranks wait for this one meanwhile."""

    def __init__(self, open_file: Callable[..., Callable[[Tensor], Tensor]], *arguments: Any) -> None:
        self._size: int = arguments[-2]
        self._problem: UserError | None = None
        self._vectors_of: Callable[[Tensor], Tensor] | None = self._try(lambda: open_file(*arguments))

    def _try(self, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except UserError as error:
            self._problem = self._problem or error
            return None

    def __call__(self, rows: Tensor) -> Tensor:
        """From rows int64 [n] to [n, D]."""
        vectors_of = self._vectors_of
        found = None if vectors_of is None else self._try(lambda: vectors_of(rows))
        return torch.zeros(len(rows), self._size) if found is None else found

    def check(self) -> None:
        """Raises the first problem, if there was one."""
        if self._problem is not None:
            raise self._problem


def token_means(word: Tensor, offsets: np.ndarray, tokens: np.ndarray) -> Callable[[Tensor], Tensor]:
    """From rows int64 [n] to the mean word embeddings [n, D] of their tokens; of all words where it has none."""
    neutral = word.mean(0)

    def means(rows: Tensor) -> Tensor:
        mine, lengths = gather(offsets, tokens, rows.numpy())
        bags = torch.from_numpy(offsets_of(lengths))
        found = mean_of_tokens(lambda ids: word[ids.to(word.device)], bags, torch.from_numpy(mine.astype(np.int64)))
        return torch.where(torch.from_numpy(lengths == 0)[:, None].to(found.device), neutral, found)

    return means


def word_embedding(engine: DeepSpeedEngine) -> Tensor:
    """The whole word-embedding matrix [V, D] in float32, on every rank."""
    weight = engine.module.encoder.embeddings.word.weight
    if not hasattr(weight, "ds_id"):
        return weight.detach().float()
    deepspeed = import_deepspeed()
    with deepspeed.zero.GatheredParameters([weight]):  # ZeRO-3 has its shards on all ranks
        return weight.detach().float().clone()
