"""A run's vector table and memory bank: what each step takes from them (Eq. 7) and gives to them (Eq. 4-6)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trelm_ds.batches import Annotator, Step
from trelm_ds.checkpoints import Captured, CheckpointInfo
from trelm_ds.config import Config
from trelm_ds.corpus import TokenizerInfo
from trelm_ds.distributed import Ranks
from trelm_ds.engine import word_embedding
from trelm_ds.errors import UserError
from trelm_ds.injection import SourceContext, fill_vectors
from trelm_ds.injection_sources import source_class
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
from trelm_ds.model import Batch, KnowledgeItems, ModelOutput, StepTables
from trelm_ds.streams import on_device
from trelm_ds.training.component import Component

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

FOLDER = "knowledge"  # in a checkpoint


class Knowledge(Component):
    """Vector table and memory bank of one rank.

    Args:
        annotator: of its loader, which knows the rows that the two have.
        epoch_samples: samples of an epoch, by which lambda decays.
    """

    def __init__(
        self,
        config: Config,
        annotator: Annotator,
        info: TokenizerInfo,
        engine: DeepSpeedEngine,
        epoch_samples: int,
        ranks: Ranks,
    ) -> None:
        self._config, self._info, self._engine = config, info, engine
        self.index, self._ranks, self._epoch_samples = annotator.index, ranks, epoch_samples
        self.size: int = engine.module.config.hidden_size
        self._log_counts = _log_counts(config, annotator, ranks.device)
        self.vectors: VectorTable | None = None
        self.bank: MemoryBank | None = None
        self.lookup: StepLookup | None = None  # of the step that is under way
        self.memory_lambda = 0.0  # lambda of Eq. 8, in that step
        group, index = TableGroup.of(ranks.data), self.index
        if index.n_vectors:
            device = torch.device("cpu") if config.injection.placement == "cpu" else ranks.device
            dtype = torch.bfloat16 if config.trainer.precision == "bf16" else torch.float32
            self.vectors = VectorTable(len(index.vector_entities), index.n_relations, self.size, dtype, device, group)
        if index.n_memory:
            self.bank = MemoryBank(index.n_memory, self.size, config.memory, ranks.device, group)

    def start(self) -> None:
        """Fill both from the model as it is now."""
        word = word_embedding(self._engine)
        self._fill_vectors(word)
        if self.bank is not None:
            self.bank.initialise(token_means(word, *self.index.memory_tokens()))

    def refresh_due(self, steps_done: int) -> bool:
        """Whether the schedule has the vectors computed anew before the next step."""
        injection = self._config.injection
        due = steps_done > 0 and injection.refresh_every > 0 and steps_done % injection.refresh_every == 0
        return due and (source_class(injection.source).refreshes or injection.projection == "fitted")

    def refresh(self) -> None:
        """Compute the vectors anew."""
        self._fill_vectors(word_embedding(self._engine))

    def before_step(self, step: Step, steps_done: int) -> None:
        """Start the look-ups of a step; with lambda at 0 the bank is left alone."""
        self.memory_lambda = self._memory_lambda(steps_done)
        self.lookup = self._look_up(step)

    def tables_of(self, step: Step) -> StepTables:
        """Look up what a step needs that is none of training, with lambda as it is now; collective."""
        return self._look_up(step).tables()

    def _look_up(self, step: Step) -> StepLookup:
        bank = self.bank if self.memory_lambda > 0 else None
        return StepLookup(
            step=step,
            vectors=self.vectors,
            bank=bank,
            word_norm=self._word_norm(bank),
            memory_lambda=self.memory_lambda,
            h_e_weight=self._config.injection.weight,
            size=self.size,
            log_counts=self._log_counts,
            ranks=self._ranks,
        )

    def model_inputs(self) -> dict[str, Any]:
        """Give what was looked up; waits for it the first time."""
        assert self.lookup is not None
        return {"tables": self.lookup.tables()}

    def after_micro_batch(self, batch: Batch, output: ModelOutput) -> None:
        """Note what the memory bank learns from a micro-batch (Eq. 4, 6)."""
        if self.lookup is not None and batch.items is not None:
            self.lookup.observe(batch.items, output.states)

    def after_step(self, taken: bool) -> dict[str, int | Tensor]:
        """Update the bank (Eq. 5, 6), unless the step was skipped."""
        lookup, self.lookup = self.lookup, None
        return lookup.update() if taken and lookup is not None else {}

    def _word_norm(self, bank: MemoryBank | None) -> Tensor:
        """Return the norm that memories get in Eq. 7, []; collective under ZeRO-3."""
        if bank is None or not self._config.memory.match_norm:
            return torch.zeros(())
        return word_embedding(self._engine).norm(dim=1).mean()

    def _memory_lambda(self, steps_done: int) -> float:
        """Compute lambda of a step (Eq. 8); 0 without a memory bank."""
        if self.bank is None:
            return 0.0
        trainer = self._config.trainer
        epoch = steps_done * trainer.global_batch_size // self._epoch_samples
        return memory_lambda(self._config.memory, steps_done, trainer.max_steps, epoch)

    def metrics(self, seconds: float) -> dict[str, float]:
        """Measure how much memory counts, and how many rows have any."""
        if self.bank is None:
            return {}
        rows, filled = self._ranks.sum(len(self.bank.contexts.local), self.bank.filled_rows)
        return {"memory_lambda": self.memory_lambda, "memory_filled": filled / max(1.0, rows)}

    def describe(self) -> dict[str, str]:
        """Say how large both are, and by what mentions are chosen."""
        sizes = ", ".join(f"{size:,} {name}" for name, size in self._sizes().items())
        return {"knowledge": sizes, "selection": self.index.describe_importance()}

    def parameters(self) -> dict[str, Any]:
        """Give the sizes of both."""
        return {f"knowledge.{name}": size for name, size in self._sizes().items()}

    def _sizes(self) -> dict[str, int]:
        """Count rows of both, and bytes of this rank's share."""
        tables = {"bytes of vectors on this rank": self.vectors, "bytes of memory on this rank": self.bank}
        return self.index.describe() | {name: table.bytes for name, table in tables.items() if table is not None}

    def _fill_vectors(self, word: Tensor) -> None:
        if self.vectors is None:
            return
        config = self._config
        context = SourceContext(
            settings=config.injection,
            index=self.index,
            tokenizer=self._info,
            engine=self._engine,
            word=word,
            ranks=self._ranks,
            seed=config.trainer.seed,
        )
        source = fill_vectors(self.vectors, context)
        self.vectors.match(*word_statistics(word), centre_relations=not source.translates)
        if not source.translates and self.vectors.n_entities:  # none where only the decoder product reads relations
            self.vectors.relate(self.index.graph, self.index.vector_entities)

    def capture(self) -> Captured:
        """Give this rank's rows for a checkpoint, uncopied: nothing may change them before they are written."""
        return Captured(sum(table.bytes for table in (self.vectors, self.bank) if table is not None), self._save)

    def _save(self, checkpoint: Path) -> list[Path]:
        files = []
        if self.vectors is not None:
            files.append(self.vectors.save(checkpoint / FOLDER, "vectors"))
        if self.bank is not None:
            files += self.bank.save(checkpoint / FOLDER)
        return files

    def load(self, checkpoint: Path, info: CheckpointInfo) -> None:
        """Read this rank's rows from a checkpoint, of whatever steps_done of ranks.

        Raises:
            UserError: a shard is missing or does not fit, or the file is gone from which vectors are to be refreshed.
        """
        injection = self._config.injection
        if injection.projection == "fitted" and injection.refresh_every and not Path(injection.file or "").is_file():
            raise UserError(f"injection.file: {injection.file} is gone; it is read again every injection.refresh_every")
        if self.vectors is not None:
            self.vectors.load(checkpoint / FOLDER, "vectors")
        if self.bank is not None:
            self.bank.load(checkpoint / FOLDER)


class StepLookup:
    """What one step takes from vector table and memory bank, and what it gives back.

    Args:
        step: this rank's part of it.
        vectors, bank: to look up in; None where there is none, or where it has no part in this step.
        word_norm: [], mean norm of the word embeddings (`memory.match_norm`).
        memory_lambda: lambda of Eq. 8.
        h_e_weight: `injection.weight`.
        size: D.
        log_counts: float32 [V], as in `StepTables`.
        ranks: all of which look up.
    """

    def __init__(
        self,
        step: Step,
        vectors: VectorTable | None,
        bank: MemoryBank | None,
        word_norm: Tensor,
        memory_lambda: float,
        h_e_weight: float,
        size: int,
        log_counts: Tensor | None,
        ranks: Ranks,
    ) -> None:
        self._bank, self._word_norm = bank, word_norm
        self._memory_lambda, self._h_e_weight = memory_lambda, h_e_weight
        self._size, self._device = size, ranks.device
        self._negatives, self._log_counts = on_device(step.negatives, ranks.device), log_counts
        self._vector_lookup = vectors.start_lookup(step.vector_rows) if vectors is not None else None
        self._memory_lookup = bank.start_lookup(step.memory_rows) if bank is not None else None
        self._learned = MemoryUpdate(step.memory_rows, bank.size, ranks.device) if bank is not None else None
        self._tables: StepTables | None = None
        self._looked_up, self._hits = 0, torch.zeros(())

    def tables(self) -> StepTables:
        """Return what was looked up; the first call waits for it, so what comes before runs beside the look-ups."""
        if self._tables is None:
            self._tables = self._arrived()
        return self._tables

    def _arrived(self) -> StepTables:
        vectors = memories = torch.zeros(0, self._size, device=self._device)
        if self._vector_lookup is not None:
            vectors = self._vector_lookup.wait().to(self._device).float()
        if self._memory_lookup is not None and self._bank is not None:
            found = self._memory_lookup.wait()
            memories = self._bank.mixed(found, self._word_norm).to(self._device)
            self._looked_up, self._hits = len(found.seen), found.seen.sum()
        return StepTables(
            vectors=vectors,
            memories=memories,
            memory_lambda=self._memory_lambda,
            candidates=self._negatives,
            log_counts=self._log_counts,
            h_e_weight=self._h_e_weight,
        )

    def observe(self, items: KnowledgeItems, states: Tensor) -> None:
        """Note what the memory bank learns from a micro-batch (Eq. 4, 6); states: [T, D], of the last layer."""
        if self._learned is not None:
            local = local_memories(states, items.window)
            self._learned.add(items.memory, local, states[items.cls], items.new_context)

    def update(self) -> dict[str, int | Tensor]:
        """Update the bank (Eq. 5, 6); collective. Returns what was counted, in part on the device."""
        if self._bank is None or self._learned is None:
            return {}
        updated = self._learned.apply(self._bank)
        return {"memory rows": updated, "looked up": self._looked_up, "hits": self._hits}


def _log_counts(config: Config, annotator: Annotator, device: torch.device) -> Tensor | None:
    """Compute how often each token is expected among a step's negatives, as logarithms [V]; None without logQ."""
    if not (config.cka.log_q and config.cka.negatives):
        return None
    expected = config.cka.negatives * annotator.negative_probabilities()
    # A token that the corpus lacks is never drawn; corrected by log 0 it would win by any margin.
    return torch.from_numpy(np.log(np.maximum(expected, expected[expected > 0].min()))).to(device)
