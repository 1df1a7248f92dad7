"""What a rank reads in each optimizer step: packed micro-batches, built ahead by worker processes."""

from __future__ import annotations

import copy
import hashlib
import math
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.resource_tracker import ensure_running
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from trelm_ds.batches.annotator import Annotator, number_rows
from trelm_ds.batches.collator import Collator, Sequences, collate
from trelm_ds.batches.flat_buffer import FlatBuffer
from trelm_ds.batches.masking import Masker
from trelm_ds.batches.packing import pack
from trelm_ds.errors import UserError
from trelm_ds.model import Batch, map_tensors
from trelm_ds.shards import Damage, SampleOrder, ShardReader, Substitution
from trelm_ds.stopping import STOP_SIGNALS

_PREFETCH = 2  # steps that each worker holds ready
_START = "spawn"  # how worker processes begin; tests with many take a warm fork server
_NO_MENTIONS = np.zeros((0, 4), dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)


class Step(NamedTuple):
    """One rank's part of an optimizer step.

    Attributes:
        micro_batches: A of them, as many as on every other rank, in the order of accumulation.
        damages: all damaged blocks that the process that built this has met so far.
        memory_rows: int64 [U], rows of the memory bank that the items of these micro-batches refer to, ascending.
        vector_rows: int64 [U'], likewise of the vector table, for items and facts.
        negatives: int64 [C], tokens that compete with the answers of the step's facts: the same on every rank.
        counts: by name, what was found and drawn: "corrupted" samples that were replaced because their block is
            damaged, "mentions" chosen, "injected", "words", "facts", "query tokens", and what objectives count.
        targets: by objective, "mlm" first, the number of terms in its loss; of this rank, until `StepReader` has summed
            it over all ranks.
    """

    micro_batches: list[Batch]
    damages: list[Damage]
    memory_rows: torch.Tensor
    vector_rows: torch.Tensor
    negatives: torch.Tensor
    counts: dict[str, int]
    targets: dict[str, float]

    @classmethod
    def empty(cls) -> Step:
        nothing = torch.zeros(0, dtype=torch.int64)
        return cls(
            micro_batches=[],
            damages=[],
            memory_rows=nothing,
            vector_rows=nothing,
            negatives=nothing,
            counts={},
            targets={},
        )

    def digest(self) -> str:
        """Hash what a model computes with."""
        sha256 = hashlib.sha256()

        def add(tensor: torch.Tensor) -> tuple[int, ...]:
            sha256.update(tensor.contiguous().numpy().tobytes())
            return tuple(tensor.shape)

        content = self.micro_batches, self.memory_rows, self.vector_rows, self.negatives
        sha256.update(repr(map_tensors(content, add)).encode())
        return sha256.hexdigest()


class StepDataset(Dataset[Step | UserError]):
    """Step s holds the run's positions [s * G, (s + 1) * G) with G = global batch size, whatever the number of ranks.

    Args:
        masker: chooses the tokens to predict.
        substitution: for samples in damaged blocks.
        global_batch_size: G.
        micro_batch_tokens: tokens per micro-batch at most; with other documents beside the sequences on average.
        rank, world_size: of the data-parallel group.
        annotator: finds knowledge; None for a run without.
        collators: of further objectives.

    Raises:
        UserError: the dataset's longest sequence does not fit into a micro-batch.
    """

    def __init__(
        self,
        reader: ShardReader,
        order: SampleOrder,
        masker: Masker,
        substitution: Substitution,
        global_batch_size: int,
        micro_batch_tokens: int,
        rank: int,
        world_size: int,
        annotator: Annotator | None = None,
        collators: Sequence[Collator] = (),
    ) -> None:
        self._collators: list[Collator] = [*([] if annotator is None else [annotator]), *collators]
        self.reader, self.order, self.substitution = reader, order, substitution
        self.annotator, self._masker = annotator, masker
        self._global, self._rank, self._world = global_batch_size, rank, world_size
        self._budget = self.tokens_of_text(micro_batch_tokens)

    def packed_to(self, micro_batch_tokens: int) -> StepDataset:
        """Return the same data in micro-batches of another size.

        Raises:
            UserError: the dataset's longest sequence does not fit into one.
        """
        other = copy.copy(self)
        other._budget = self.tokens_of_text(micro_batch_tokens)
        return other

    @property
    def least_tokens(self) -> int:
        """Least size of micro-batches, in tokens."""
        return math.ceil(self.reader.manifest.max_length * (1 + self._share))

    @property
    def _share(self) -> float:
        """Tokens of other documents for each token of text, on average."""
        return sum(collator.token_share for collator in self._collators)

    def tokens_of_text(self, micro_batch_tokens: int) -> int:
        """Return how many tokens of sequences micro-batches of a size have at most.

        Raises:
            UserError: the dataset's longest sequence does not fit into one.
        """
        share = self._share
        budget = int(micro_batch_tokens / (1 + share))
        if budget < self.reader.manifest.max_length:
            beside = ""
            if share:
                largest = max(self._collators, key=lambda collator: collator.token_share)
                beside = f" without {share:g} times as many beside the text ({largest.token_settings})"
            raise UserError(
                f"trainer.micro_batch_tokens: {micro_batch_tokens}{beside} is less than the dataset's longest "
                f"sequence of {self.reader.manifest.max_length} tokens; raise it, or prepare with a smaller "
                "--max-length"
            )
        return budget

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this data from other data: fingerprint, and the scores of importance in use, if any."""
        common: dict[str, Any] = {"dataset": self.reader.manifest.fingerprint}
        if self.annotator is not None:
            scores = self.annotator.index.scores
            common["importance"] = None if scores is None else scores.digest
        return common

    def __getitem__(self, step: int) -> Step | UserError:
        """Build this rank's part of a step; return a `UserError`, since raising in a worker would bury its message."""
        try:
            return self.build(step * self._global, self._global, step)
        except UserError as error:
            return error

    def build(self, start: int, count: int, step: int) -> Step:
        """Build this rank's part of the samples at the run's positions [start, start + count), as those of a step.

        Raises:
            UserError: too much of the dataset is damaged.
        """
        epochs, ids = self.order.samples(start, count)
        mine = pack(self.reader.lengths[ids], self._world, self._budget)[self._rank]
        batches, counts, targets = list[Batch](), Counter[str](), Counter[str]()
        for rows in mine:
            batch, counted = self._build(epochs[rows], ids[rows], step)
            batches.append(batch)
            counts.update(counted)
            targets.update(batch.targets)
        batches, memory_rows, vector_rows = number_rows(batches)
        negatives = np.zeros(0, dtype=np.int64) if self.annotator is None else self.annotator.negatives(step)
        return Step(
            micro_batches=batches,
            damages=self.substitution.damages,
            memory_rows=memory_rows,
            vector_rows=vector_rows,
            negatives=torch.from_numpy(negatives),
            counts=dict(counts),
            targets=dict(targets),
        )

    def _build(self, epochs: np.ndarray, sample_ids: np.ndarray, step: int) -> tuple[Batch, dict[str, int]]:
        """Read, mask and pack the samples of a micro-batch; return it, and what was counted."""
        readable = self.substitution.readable(epochs, sample_ids)
        tokens_of = self.reader.tokens(readable)
        lengths = np.array([len(tokens) for tokens in tokens_of])
        tokens = np.concatenate(tokens_of).astype(np.int64)
        # A substitute is masked by the key of the sample whose place it takes.
        input_ids, positions = self._masker(tokens, lengths, epochs, sample_ids, step)
        mentions, blocks, places = self.reader.mentions(readable) if self._collators else _NO_MENTIONS
        sequences = Sequences(
            tokens=tokens,
            input_ids=input_ids,
            mlm_positions=positions,
            lengths=lengths,
            epochs=epochs,
            sample_ids=sample_ids,
            mentions=mentions,
            blocks=blocks,
            places=places,
        )
        batch, counts = collate(sequences, self._collators)
        return batch, counts | {"corrupted": int((readable != sample_ids).sum())}


class _Flattened(Dataset[FlatBuffer | UserError]):
    """The steps of a dataset, each with its tensors in one buffer."""

    def __init__(self, dataset: StepDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, step: int) -> FlatBuffer | UserError:
        item = self._dataset[step]
        return item if isinstance(item, UserError) else FlatBuffer.of(item)


class StepLoader:
    """Iterates over steps, each built once, in order, ahead of its use.

    The workers are processes: reading beside the training loop's thread would take the interpreter from it. They are
    started afresh (spawn): a fork of a process with CUDA, gloo or an object store's threads may hang.

    Args:
        first, last: steps [first, last).
        workers: processes; 0 builds each step in this process when it is asked for.
    """

    def __init__(self, dataset: StepDataset, first: int, last: int, workers: int) -> None:
        pinned = torch.cuda.is_available()
        more: dict[str, Any] = {"prefetch_factor": _PREFETCH, "multiprocessing_context": _START} if workers else {}
        self._loader = DataLoader(
            _Flattened(dataset),
            batch_size=None,
            sampler=range(first, last),
            num_workers=workers,
            pin_memory=pinned,
            **more,
        )
        self._iterator: Iterator[FlatBuffer | UserError] | None = None

    def __next__(self) -> Step:
        """Return the next step's part.

        Raises:
            UserError: too much of the dataset is damaged.
        """
        item = next(self._running())
        if isinstance(item, UserError):
            raise item
        step: Step = item.unpacked()
        return step

    def _running(self) -> Iterator[FlatBuffer | UserError]:
        if self._iterator is None:
            # A launcher signals all processes of the job. Only the training process acts on that: workers start with
            # these signals blocked and end with it, when it closes the loader or dies.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
            try:
                ensure_running()  # Python's resource tracker; or the first worker starts it
                # Once more, because starting it unblocks SIGINT and SIGTERM.
                signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
                self._iterator = iter(self._loader)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self._iterator

    def close(self) -> None:
        """End the workers."""
        iterator, self._iterator = self._iterator, None
        if iterator is None or not self._loader.num_workers:
            return
        processes = list(iterator._workers)  # type: ignore[attr-defined]
        iterator._shutdown_workers()  # type: ignore[attr-defined]
        for process in processes:  # one that hangs in a file system does not see SIGTERM either
            process.kill()
