"""A run's vector table and memory bank: what each step takes from them (Eq. 7) and gives to them (Eq. 4-6)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from trelm_ds.batches import Annotator, Batch, KnowledgeIndex, StepBatches
from trelm_ds.checkpoints import Captured
from trelm_ds.config import Config
from trelm_ds.corpus import TokenizerInfo
from trelm_ds.distributed import Ranks
from trelm_ds.engine import word_embedding
from trelm_ds.injection import SourceContext, fill_vectors, source_class
from trelm_ds.knowledge.tables import (
    MemoryBank,
    MemoryUpdate,
    TableGroup,
    VectorTable,
    local_memories,
    memory_lambda,
    token_means,
    word_statistics,
)
from trelm_ds.model import Injected, Questions

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

FOLDER = "knowledge"  # in a checkpoint


class Knowledge:
    """Vector table and memory bank of one rank; every method is collective.

    Args:
        config: of the run.
        index: which rows the two have.
        info: of the tokenizer.
        log_counts: [V], how often each token is expected among a step's negatives, as logarithms; None without logQ.
        size: D.
        ranks: of the run.
    """

    def __init__(
        self,
        config: Config,
        index: KnowledgeIndex,
        info: TokenizerInfo,
        log_counts: Tensor | None,
        size: int,
        ranks: Ranks,
    ) -> None:
        self._config, self._index, self._info, self.size = config, index, info, size
        self._ranks = ranks
        self._log_counts = None if log_counts is None else log_counts.to(ranks.device)
        self.vectors: VectorTable | None = None
        self.bank: MemoryBank | None = None
        group = TableGroup.of_all_ranks(ranks.device)
        if index.n_vectors:
            device = torch.device("cpu") if config.injection.placement == "cpu" else ranks.device
            dtype = torch.bfloat16 if config.trainer.precision == "bf16" else torch.float32
            self.vectors = VectorTable(len(index.vector_entities), index.n_relations, size, dtype, device, group)
        if index.n_memory:
            self.bank = MemoryBank(index.n_memory, size, config.memory, ranks.device, group)

    def start(self, engine: DeepSpeedEngine) -> None:
        """Fills both from the model as it is now."""
        word = word_embedding(engine)
        self._fill_vectors(engine, word)
        if self.bank is not None:
            self.bank.initialise(token_means(word, *self._index.memory_tokens()))

    def refresh_due(self, step: int) -> bool:
        """Whether the schedule has the vectors computed anew before this step."""
        injection = self._config.injection
        due = step > 0 and injection.refresh_every > 0 and step % injection.refresh_every == 0
        return due and source_class(injection.source).refreshes

    def refresh(self, engine: DeepSpeedEngine) -> None:
        """Computes the vectors anew."""
        self._fill_vectors(engine, word_embedding(engine))

    def _fill_vectors(self, engine: DeepSpeedEngine, word: Tensor) -> None:
        if self.vectors is None:
            return
        config = self._config
        context = SourceContext(
            config.injection, self._index, self._info, engine, word, self._ranks, config.trainer.seed
        )
        source = fill_vectors(self.vectors, context)
        self.vectors.match(*word_statistics(word), centre_relations=source.centre_relations)

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

    def describe(self) -> dict[str, int]:
        """Rows of both, and bytes of this rank's share."""
        tables = {"bytes of vectors on this rank": self.vectors, "bytes of memory on this rank": self.bank}
        return self._index.describe() | {name: table.bytes for name, table in tables.items() if table is not None}

    def capture(self) -> Captured:
        """This rank's rows for a checkpoint. Not copied: nothing may change them before they are written."""
        return Captured(sum(table.bytes for table in (self.vectors, self.bank) if table is not None), self._save)

    def _save(self, checkpoint: Path) -> list[Path]:
        files = []
        if self.vectors is not None:
            files.append(self.vectors.save(checkpoint / FOLDER, "vectors"))
        if self.bank is not None:
            files += self.bank.save(checkpoint / FOLDER)
        return files

    def load(self, checkpoint: Path) -> None:
        """Takes this rank's rows from a checkpoint, of whatever number of ranks.

        Raises:
            UserError: a shard is missing or does not fit.
        """
        if self.vectors is not None:
            self.vectors.load(checkpoint / FOLDER, "vectors")
        if self.bank is not None:
            self.bank.load(checkpoint / FOLDER)


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
        vectors, bank = knowledge.vectors, self._bank
        self._vector_lookup = vectors.start_lookup(read.vector_rows) if vectors is not None else None
        self._memory_lookup = bank.start_lookup(read.memory_rows) if bank is not None else None
        self._update = MemoryUpdate(read.memory_rows, bank.size, device) if bank is not None else None
        self._vectors: Tensor | None = None
        self._memories: Tensor | None = None
        self._looked_up, self._hits = 0, torch.zeros(())

    def _arrive(self) -> None:
        """Waits for the look-ups, which have run beside what came since."""
        if self._vector_lookup is not None:
            self._vectors = self._vector_lookup.wait().to(self._device).float()
            self._vector_lookup = None
        if self._memory_lookup is not None:
            memories = self._memory_lookup.wait()
            self._memories = (memories.local.float() + memories.global_.float()).to(self._device)
            self._looked_up, self._hits = len(memories.seen), memories.seen.sum()
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
        relations = torch.zeros(0, self._size, device=self._device)
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

    def observe(self, batch: Batch, window: Tensor | None, states: Tensor) -> None:
        """Notes what the memory bank learns from a micro-batch (Eq. 4, 6).

        Args:
            batch: on the device.
            window: of its items, on the CPU, where nothing waits for the device to learn its sizes.
            states: [T, D], of the last layer.
        """
        if self._update is not None and batch.items is not None and window is not None:
            items = batch.items
            self._update.add(items.memory, local_memories(states, window), states[items.cls], items.new_context)

    def close(self) -> dict[str, int | Tensor]:
        """Updates the bank (Eq. 5, 6); returns what was counted, in part on the device."""
        if self._bank is None or self._update is None:
            return {}
        updated = self._update.apply(self._bank)
        return {"memory rows": updated, "looked up": self._looked_up, "hits": self._hits}


def open_knowledge(
    config: Config, annotator: Annotator | None, info: TokenizerInfo, size: int, ranks: Ranks
) -> Knowledge | None:
    """The tables of a run with knowledge; collective.

    Args:
        config: of the run.
        annotator: of its loader; None for a run without knowledge.
        info: of the tokenizer.
        size: D.
        ranks: of the run.
    """
    if annotator is None:
        return None
    log_counts = None
    if config.cka.log_q and config.cka.negatives:
        expected = config.cka.negatives * annotator.negative_probabilities()
        # A token that the corpus lacks is never drawn; corrected by log 0 it would win by any margin.
        log_counts = torch.from_numpy(np.log(np.maximum(expected, expected[expected > 0].min())))
    return Knowledge(config, annotator.index, info, log_counts, size, ranks)
