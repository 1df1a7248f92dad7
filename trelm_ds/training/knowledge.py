"""A run's vector table and memory bank: what each step takes from them (Eq. 7) and gives to them (Eq. 4-6)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from trelm_ds.config import Config
from trelm_ds.corpus import TokenizerInfo
from trelm_ds.knowledge import (
    KnowledgeIndex,
    MemoryBank,
    MemoryUpdate,
    Names,
    TableGroup,
    VectorTable,
    gather,
    local_memories,
    mean_of_tokens,
    memory_lambda,
    vectors_from_file,
    word_statistics,
)
from trelm_ds.model import Injected, Questions
from trelm_ds.training.batch import Batch
from trelm_ds.training.distributed import Ranks, import_deepspeed
from trelm_ds.training.loader import StepBatches

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

FOLDER = "knowledge"  # in a checkpoint
_BATCH = 1024  # rows whose vectors are computed at a time


class Knowledge:
    """Vector table and memory bank of one rank; every method is collective.

    Args:
        config: of the run.
        index: which rows the two have.
        names: of the graph's entities and relations.
        info: of the tokenizer.
        log_counts: [V], how often each token is expected among a step's negatives, as logarithms; None without logQ.
        size: D.
        ranks: of the run.
    """

    def __init__(
        self,
        config: Config,
        index: KnowledgeIndex,
        names: Names,
        info: TokenizerInfo,
        log_counts: Tensor | None,
        size: int,
        ranks: Ranks,
    ) -> None:
        self._config, self._index, self._names, self._info, self.size = config, index, names, info, size
        self._ranks = ranks
        self._log_counts = None if log_counts is None else log_counts.to(ranks.device)
        self.vectors: VectorTable | None = None
        self.bank: MemoryBank | None = None
        if index.n_vectors:
            device = self._device(config.injection.placement)
            dtype = torch.bfloat16 if config.trainer.precision == "bf16" else torch.float32
            self.vectors = VectorTable(index.n_vectors, size, dtype, device, self._group(device))
        if index.n_memory:
            device = self._device(config.memory.placement)
            self.bank = MemoryBank(index.n_memory, size, config.memory, device, self._group(device))

    def _device(self, placement: str) -> torch.device:
        return torch.device("cpu") if placement == "cpu" else self._ranks.device

    def _group(self, device: torch.device) -> TableGroup:
        """Groups of its own: these exchanges must not wait in line with DeepSpeed's."""
        if self._ranks.world_size == 1:
            return TableGroup(0, 1, None, None)
        control = dist.new_group(backend="gloo")
        payload = dist.new_group(backend="nccl" if device.type == "cuda" else "gloo")
        return TableGroup(self._ranks.rank, self._ranks.world_size, control, payload)

    def start(self, engine: DeepSpeedEngine) -> None:
        """Fills both from the model as it is now."""
        word = word_embedding(engine)
        self._fill_vectors(engine, word)
        if self.bank is not None:
            offsets, tokens = self._index.memory_tokens()
            rows_to_vectors = mean_of_tokens(lambda ids: F.embedding(ids, word), offsets, tokens)
            self.bank.initialise(rows_to_vectors)

    def refresh(self, engine: DeepSpeedEngine, step: int) -> None:
        """Computes the vectors anew where the schedule says so; before the step."""
        injection = self._config.injection
        due = step and injection.refresh_every and step % injection.refresh_every == 0
        if due and injection.source in ("encoder", "alias_mean"):
            self._fill_vectors(engine, word_embedding(engine))

    def _fill_vectors(self, engine: DeepSpeedEngine, word: Tensor) -> None:
        if self.vectors is None:
            return
        injection, index = self._config.injection, self._index
        if injection.source == "file":
            assert injection.file is not None
            rows = np.concatenate([index.vector_entities, index.n_graph_entities + np.arange(index.n_relations)])
            expected = index.n_graph_entities, index.n_relations
            vectors_of = vectors_from_file(Path(injection.file), rows, expected, self.size, self._config.trainer.seed)
        elif injection.source == "alias_mean":
            offsets, tokens = self._alias_tokens()
            vectors_of = mean_of_tokens(lambda ids: F.embedding(ids, word), offsets, tokens)
        else:
            vectors_of = NameEncoder(engine, self._names, self._index, self._info, injection.max_name_tokens)
        self.vectors.refresh_from(vectors_of, _BATCH)
        self.vectors.match(*word_statistics(word))

    def _alias_tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """Offsets and tokens of every row's names."""
        names = self._names
        tokens, lengths = gather(names.alias_offsets, names.alias_tokens, self._index.vector_entities)
        more = np.diff(names.relation_offsets)
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([lengths, more]))])
        return offsets, np.concatenate([tokens, names.relation_tokens])

    def open_step(self, read: StepBatches, influence: float) -> StepKnowledge:
        """Starts the look-ups of a step.

        Args:
            read: this rank's part of it.
            influence: lambda of Eq. 8; at 0 the bank is left alone.
        """
        return StepKnowledge(self, read, influence, self._ranks.device, self._log_counts)

    def memory_lambda(self, step: int, epoch: int) -> float:
        """lambda of a step (Eq. 8); 0 without a memory bank."""
        if self.bank is None:
            return 0.0
        return memory_lambda(self._config.memory, step, self._config.trainer.max_steps, epoch)

    def save(self, checkpoint: Path) -> None:
        """Writes this rank's rows into a checkpoint."""
        folder = checkpoint / FOLDER
        folder.mkdir(exist_ok=True)
        for table in (self.vectors, self.bank):
            if table is not None:
                table.save(folder)

    def load(self, checkpoint: Path) -> None:
        """Takes this rank's rows from a checkpoint, of whatever number of ranks.

        Raises:
            UserError: a shard is missing or does not fit.
        """
        for table in (self.vectors, self.bank):
            if table is not None:
                table.load(checkpoint / FOLDER)


class StepKnowledge:
    """What one step's micro-batches take from vector table and memory bank, and what they give back."""

    def __init__(
        self,
        knowledge: Knowledge,
        read: StepBatches,
        influence: float,
        device: torch.device,
        log_counts: Tensor | None,
    ) -> None:
        self._bank = knowledge.bank if influence > 0 else None
        self._influence, self._device, self._log_counts = influence, device, log_counts
        self._size = knowledge.size
        self._negatives = read.negatives.to(device, non_blocking=True)
        self._rows = read.memory_rows
        vectors, bank = knowledge.vectors, self._bank
        self._vector_lookup = vectors.start_lookup(read.vector_rows) if vectors is not None else None
        self._memory_lookup = bank.start_lookup(read.memory_rows) if bank is not None else None
        self._update = MemoryUpdate(len(read.memory_rows), bank.size, device) if bank is not None else None
        self._vectors: Tensor | None = None
        self._memories: Tensor | None = None
        self._looked_up, self._hits = 0, 0

    def _arrive(self) -> None:
        """Waits for the look-ups, which have run beside what came since."""
        if self._vector_lookup is not None:
            self._vectors = self._vector_lookup.wait().to(self._device).float()
            self._vector_lookup = None
        if self._memory_lookup is not None:
            memories = self._memory_lookup.wait()
            self._memories = (memories.local.float() + memories.global_.float()).to(self._device)
            self._looked_up, self._hits = len(memories.seen), int(memories.seen.sum())
            self._memory_lookup = None

    def inputs(self, batch: Batch) -> tuple[Injected | None, Questions | None]:
        """What the model is given with a micro-batch; waits for the look-ups the first time."""
        self._arrive()
        return self._injected(batch), self._questions(batch)

    def _injected(self, batch: Batch) -> Injected | None:
        """Eq. 7 for the items of a micro-batch that follow it in this pass."""
        items = batch.items
        if items is None:
            return None
        count, has_triple = len(items.memory), items.entity >= 0
        h_e = memories = torch.zeros(count, self._size, device=self._device)
        share = torch.zeros(count, device=self._device)
        if self._vectors is not None and len(self._vectors):
            entity, relation = (self._vectors[rows.clamp(min=0)] for rows in (items.entity, items.relation))
            h_e = (entity + items.sign[:, None] * relation) * has_triple[:, None]
        if self._memories is not None and len(self._memories):
            share = self._influence * (items.memory >= 0)
            memories = self._memories[items.memory.clamp(min=0)]
        vectors = (1 - share)[:, None] * h_e + (share / 2)[:, None] * memories
        return Injected(items.token_rows, items.token_items, (1 - share) * ~has_triple, vectors)

    def _questions(self, batch: Batch) -> Questions | None:
        """The facts of a micro-batch."""
        facts = batch.facts
        if facts is None:
            return None
        relations = torch.zeros(0, device=self._device)
        if self._vectors is not None and len(facts.relations):
            relations = self._vectors[facts.relations]
        return Questions(
            facts.labels,
            facts.fact,
            facts.place,
            facts.positions,
            facts.spans,
            relations,
            facts.inverse,
            self._negatives,
            self._log_counts,
        )

    def observe(self, batch: Batch, states: Tensor) -> None:
        """Notes what the memory bank learns from a micro-batch's last-layer states [T, D] (Eq. 4)."""
        items = batch.items
        if self._update is not None and items is not None:
            local = local_memories(states, items.window)
            self._update.add(items.memory, local, states[items.cls], items.new_context)

    def close(self) -> dict[str, int]:
        """Updates the bank (Eq. 5, 6); returns what was counted."""
        if self._bank is None or self._update is None:
            return {}
        updated = self._bank.update(self._rows, *self._update.sums())
        return {"memory rows": updated, "looked up": self._looked_up, "hits": self._hits}


class NameEncoder:
    """Vectors of the table's rows: name and description through the encoder as it is, mean over their tokens.

    Args:
        engine: around the model; every rank must call as often, because ZeRO-3 gathers weights.
        names: of the graph.
        index: which rows the table has.
        info: of the tokenizer.
        max_tokens: of name and description together.
    """

    def __init__(
        self, engine: DeepSpeedEngine, names: Names, index: KnowledgeIndex, info: TokenizerInfo, max_tokens: int
    ) -> None:
        self._engine, self._names, self._index, self._info = engine, names, index, info
        self._max_tokens = min(max_tokens, engine.module.config.max_position_embeddings - 2)

    @torch.no_grad()
    def __call__(self, rows: Tensor) -> Tensor:
        """Vectors of table rows int64 [n]: [n, D]; 0 for one without a name."""
        documents = [self._tokens(row) for row in rows.tolist()]
        framed = [np.concatenate([[self._info.cls], tokens, [self._info.sep]]) for tokens in documents]
        framed = framed or [np.array([self._info.cls, self._info.sep])]  # this rank has none left, others have
        lengths = np.array([len(tokens) for tokens in framed])
        device = self._engine.device
        ids = torch.from_numpy(np.concatenate(framed).astype(np.int64)).to(device)
        cu_seqlens = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)).to(device)
        nothing = ids.new_empty(0)
        training = self._engine.training
        self._engine.eval()
        states = self._engine(ids, cu_seqlens, int(lengths.max()), nothing, nothing).states
        self._engine.train(training)
        inside = torch.stack([cu_seqlens[:-1] + 1, cu_seqlens[1:] - 1], dim=1).long()
        return local_memories(states, inside)[: len(rows)]

    def _tokens(self, row: int) -> np.ndarray:
        names, entities = self._names, self._index.vector_entities
        if row >= len(entities):
            relation = row - len(entities)
            return names.relation_tokens[slice(*names.relation_offsets[relation : relation + 2])][: self._max_tokens]
        entity = entities[row]
        label = names.entity_tokens[slice(*names.entity_offsets[entity : entity + 2])]
        text = names.text_tokens[slice(*names.text_offsets[entity : entity + 2])]
        return np.concatenate([label, text])[: self._max_tokens]


def word_embedding(engine: DeepSpeedEngine) -> Tensor:
    """The whole word-embedding matrix [V, D] in float32, on every rank."""
    weight = engine.module.encoder.embeddings.word.weight
    if not hasattr(weight, "ds_id"):
        return weight.detach().float()
    deepspeed = import_deepspeed()
    with deepspeed.zero.GatheredParameters([weight]):  # ZeRO-3 has its shards on all ranks
        return weight.detach().float().clone()
