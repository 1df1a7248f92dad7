"""The knowledge-augmented memory bank (paper 3.2, Eq. 4-8), sharded over the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trelm_ds.config import MemoryConfig
from trelm_ds.knowledge.tables.sharded_table import Lookup, ShardedTable, TableGroup
from trelm_ds.streams import on_device

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def memory_window(
    first: np.ndarray, last: np.ndarray, start: np.ndarray, stop: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Clip the window l-k .. r+k of Eq. 4 to the mention's sequence.

    Args:
        first, last: int [I], l and r: a mention's first and last token, inclusive.
        start, stop: int [I], range [start, stop) of the non-special tokens of its sequence.
        k: half the window.

    Returns:
        range [begin, end) of the window, int [I] each.
    """
    begin = np.clip(first - k, start, stop)
    return begin, np.clip(last + k + 1, begin, stop)


def local_memories(states: Tensor, window: Tensor) -> Tensor:
    """Average the last layer's states over a window around each mention (Eq. 4), outside of autograd.

    Divides by the number of states in the window (the paper's 2k + r - l is off by one and ignores sequence ends).

    Args:
        states: [T, D], any float dtype; sums are fp32.
        window: int64 [I, 2], ranges [first, last) of rows to average (`memory_window`), on any device. On the GPU this
            causes a host sync, to learn the total number of rows.

    Returns:
        float32 [I, D]; 0 where a window is empty. Deterministic: see `sum_by_row`.
    """
    if not len(window):
        return states.new_zeros(0, states.shape[1], dtype=torch.float32)
    begin, lengths = window[:, 0], window[:, 1] - window[:, 0]
    offsets = F.pad(lengths.cumsum(0), (1, 0))
    rows = torch.repeat_interleave(begin - offsets[:-1], lengths)
    rows = on_device(rows + torch.arange(len(rows), device=rows.device), states.device)
    offsets = on_device(offsets, states.device)
    return F.embedding_bag(rows, states.detach().float(), offsets, mode="mean", include_last_offset=True)


def sum_by_row(values: Tensor, rows: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """Sum and count the values of each row, bit-identically on every call.

    `index_add` will not do: on a GPU its atomic additions happen in any order. After a stable sort, `embedding_bag`
    sums each row with one thread per column, in the order of `values`, on CPU and GPU alike.

    Args:
        values: float32 [I, W].
        rows: int64 [I] in 0 .. n_rows - 1; -1 to ignore the value.

    Returns:
        sums float32 [n_rows, W] and counts int64 [n_rows].
    """
    if not len(rows):
        return values.new_zeros(n_rows, values.shape[1]), rows.new_zeros(n_rows)
    ascending, order = torch.sort(rows, stable=True)
    # The first bag collects the -1: dropping them beforehand would need a host sync to learn their number.
    offsets = torch.searchsorted(ascending, torch.arange(-1, n_rows + 1, device=rows.device))
    sums = F.embedding_bag(order, values, offsets, mode="sum", include_last_offset=True)
    return sums[1:], offsets.diff()[1:]


def memory_lambda(settings: MemoryConfig, step: int, max_steps: int, epoch: int) -> float:
    """Compute lambda of Eq. 8, the share of memory in an embedding: lambda_0 / beta^q, 0 in the last part of training.

    Args:
        settings: q counts periods of `decay_every_steps` if that is set, else parts of the run (`decay_share`), else
            epochs.
        step: optimizer steps done before this one.
        max_steps: optimizer steps of the whole run.
        epoch: counted from 0.
    """
    # Rounded first, because 100 * (1 - 0.43) is 57.00000000000001.
    if step >= math.ceil(round(max_steps * (1 - settings.release_fraction), 6)):
        return 0.0
    if settings.decay_every_steps:
        q = step // settings.decay_every_steps
    elif settings.decay_share:
        q = step * settings.decay_share // max_steps
    else:
        q = epoch
    return settings.initial_lambda * settings.beta**-q  # not / beta**q, which overflows for a large q


class Memories(NamedTuple):
    """The memories of n rows.

    Attributes:
        local, global_: [n, D], in the bank's dtype, on its device.
        seen: bool [n], whether the row has ever been updated; otherwise it still holds its initial value.
    """

    local: Tensor
    global_: Tensor
    seen: Tensor


class MemoryLookup(NamedTuple):
    """A lookup in progress."""

    memories: Lookup
    contexts: Lookup

    def wait(self) -> Memories:
        """Wait for the lookup and return its result."""
        local, global_ = self.memories.wait().chunk(2, dim=1)
        return Memories(local, global_, self.contexts.wait()[:, 0] > 0)


class MemoryBank:
    """Local and global memory of R entities and words, and the number of contexts each has been seen in.

    In bf16 a running mean stops moving once a row has had a few hundred contexts, because each adds less than half a
    unit in the last place. A moving average with gamma keeps moving, if in coarse steps.

    Args:
        n_rows: R.
        size: D.
        settings: gamma, form of Eq. 6, dtype, placement.
        device: the model's device, which also holds the bank unless `settings.placement` is cpu.
        group: the ranks that share the bank.

    Attributes:
        table: [R, 2 D], local and global memory side by side, so that one exchange fetches both.
        contexts: int64 [R, 1], number of contexts in Eq. 6 so far.
        seen_total: float64 [D + 1] on the CPU, the same on every rank: sum of the global memories of all rows that have
            a context, and the number of these rows. Kept only for `centre_global`.
    """

    def __init__(self, n_rows: int, size: int, settings: MemoryConfig, device: torch.device, group: TableGroup) -> None:
        device = torch.device("cpu") if settings.placement == "cpu" else device
        self.size, self.settings = size, settings
        self.table = ShardedTable(n_rows, 2 * size, _DTYPES[settings.dtype], device, group)
        self.contexts = ShardedTable(n_rows, 1, torch.int64, device, group)
        self.seen_total = torch.zeros(size + 1, dtype=torch.float64, device=device)

    @property
    def bytes(self) -> int:
        """Size of this rank's shard in bytes."""
        return self.table.bytes + self.contexts.bytes

    @property
    def filled_rows(self) -> int:
        """Number of this rank's rows that have ever been updated."""
        return int((self.contexts.local > 0).sum())

    def initialise(self, vectors_of: Callable[[Tensor], Tensor], batch: int = 8192) -> None:
        """Initialise both memories of every row (paper 3.2: from the pre-trained word embeddings), with 0 contexts.

        Every rank calls `vectors_of` the same number of times, possibly with no rows; nothing else is collective.

        Args:
            vectors_of: maps rows, int64 [n] on the CPU, to vectors [n, D].
            batch: maximum number of rows per call.
        """
        self.table.fill(lambda rows: vectors_of(rows).repeat(1, 2), batch)
        self.contexts.local.zero_()
        self.seen_total.zero_()

    def start_lookup(self, rows: Tensor) -> MemoryLookup:
        """Start fetching rows, int64 [n] on the CPU; collective. `wait()` on the result returns `Memories`."""
        route = self.table.route(rows)
        return MemoryLookup(self.table.start_lookup(route), self.contexts.start_lookup(route))

    def mixed(self, memories: Memories, word_norm: Tensor) -> Tensor:
        """Compute M_local + M_global as Eq. 7 takes them: float32 [n, D].

        They are last-layer states, several times as long as word embeddings, and global ones ([CLS] states) differ
        little from each other. So the settings centre global memory and bring each of the two to one norm.

        Args:
            memories: of n rows.
            word_norm: [], the norm that each gets (`match_norm`).
        """
        local, global_ = memories.local.float(), memories.global_.float()
        if self.settings.centre_global:
            mean = self.seen_total[:-1] / self.seen_total[-1].clamp(min=1)
            # What has not been seen is a mean of word embeddings.
            global_ = torch.where(memories.seen[:, None], global_ - mean.to(global_), global_)
        if self.settings.match_norm:
            local, global_ = (F.normalize(part, dim=1) * word_norm.to(part) for part in (local, global_))
        return local + global_

    def update(self, rows: Tensor, local_sum: Tensor, occurrences: Tensor, cls_sum: Tensor, contexts: Tensor) -> int:
        """Apply Eq. 5 and 6 for everything one optimizer step has seen on all ranks; collective, once per step.

        The c occurrences of a row are applied together, independent of their order and rank: local memory moves
        1 - (1 - gamma)^c of the way to their mean, which equals c steps of Eq. 5 towards it. Global memory becomes the
        mean over all contexts so far, or moves 1 - (1 - gamma)^c of the way to the mean of c new ones. Uses fp32.

        Args:
            rows: int64 [U] on the CPU, distinct; U may be 0.
            local_sum: float32 [U, D], sum of Eq. 4 over this rank's occurrences of each row.
            occurrences: int64 [U], number of these occurrences; less than 2^24.
            cls_sum: float32 [U, D], sum of the first tokens' states over this rank's contexts of each row.
            contexts: int64 [U], number of these contexts: at least 1 where there is an occurrence.

        Returns:
            the number of distinct rows owned by this rank that were updated.
        """
        # As floats, counts travel with the sums in one exchange; below 2^24 they are exact.
        counts = torch.stack([occurrences, contexts], dim=1).to(local_sum)
        named, values = self.table.send(rows, torch.cat([local_sum, cls_sum, counts], dim=1))
        distinct, index = torch.unique(named, return_inverse=True)
        sums, _ = sum_by_row(values, on_device(index, values.device), len(distinct))
        local_sum, cls_sum, counts = sums.split([self.size, self.size, 2], dim=1)
        seen, new = counts.double().split(1, dim=1)

        places = self.table.place(distinct)
        before = self.contexts.local[places]
        local_weight, global_weight = (1 - (1 - self.settings.gamma) ** count for count in (seen, new))
        if self.settings.global_update == "mean":
            global_weight = new / (before + new).clamp(min=1)  # 1 at first, which discards the initial value
        local, global_ = self.table.local[places].float().chunk(2, dim=1)
        local = torch.lerp(local, local_sum / seen.clamp(min=1).float(), local_weight.float())
        updated = torch.lerp(global_, cls_sum / new.clamp(min=1).float(), global_weight.float())
        kept = torch.cat([local, updated], dim=1).to(self.table.local)
        self.table.local[places] = kept
        self.contexts.local[places] = after = before + new.long()
        if self.settings.centre_global:
            self._count_seen(global_, before, kept[:, self.size :], after)
        return len(distinct)

    def _count_seen(self, old: Tensor, before: Tensor, new: Tensor, after: Tensor) -> None:
        """Follow in `seen_total` what an update has changed on any rank; collective.

        Args:
            old, new: [m, D], global memories of this rank's rows before and after the update.
            before, after: int64 [m, 1], their numbers of contexts.
        """
        was, is_ = (before > 0).double(), (after > 0).double()
        change = torch.cat([new.double() * is_ - old.double() * was, is_ - was], dim=1).sum(0)
        self.seen_total += self.table.group.sum(change)

    def save(self, folder: Path) -> list[Path]:
        """Write this rank's shard into a folder shared by all ranks; return the files."""
        files = [self.table.save(folder, "memory"), self.contexts.save(folder, "memory-contexts")]
        if self.table.group.rank == 0 and self.settings.centre_global:
            files.append(self._total.save(folder, "memory-total"))
        return files

    def load(self, folder: Path) -> None:
        """Load what any number of ranks saved.

        Raises:
            UserError: a file is missing, cannot be read, or belongs to a bank of another size.
        """
        self.table.load(folder, "memory")
        self.contexts.load(folder, "memory-contexts")
        if self.settings.centre_global:
            self._total.load(folder, "memory-total")

    @property
    def _total(self) -> ShardedTable:
        """A table of one row, of this process alone, over the memory of `seen_total`."""
        table = ShardedTable(1, self.size + 1, torch.float64, self.seen_total.device, TableGroup())
        table.local = self.seen_total[None]
        return table


class MemoryUpdate:
    """Accumulates over a step's micro-batches the sums that `MemoryBank.update` takes.

    Args:
        rows: int64 [U] on the CPU, the step's rows, distinct.
        size: D.
        device: device of the states.
    """

    def __init__(self, rows: Tensor, size: int, device: torch.device) -> None:
        self.rows = rows
        self.local_sum = torch.zeros(len(rows), size, device=device)
        self.cls_sum = torch.zeros_like(self.local_sum)
        self.occurrences = torch.zeros(len(rows), dtype=torch.int64, device=device)
        self.contexts = torch.zeros_like(self.occurrences)

    def add(self, index: Tensor, local: Tensor, cls_states: Tensor, new_context: Tensor) -> None:
        """Add a micro-batch's I items; all tensors are on the states' device.

        Args:
            index: int64 [I], which of the U rows each item belongs to; -1: none.
            local: float32 [I, D], Eq. 4 (`local_memories`).
            cls_states: [I, D], state of the first token of each item's sequence.
            new_context: bool [I], whether the item is the first of its row in its sequence.
        """
        sums, counts = sum_by_row(local.detach(), index, len(self.rows))
        self.local_sum += sums
        self.occurrences += counts
        sums, counts = sum_by_row(cls_states.detach().float(), torch.where(new_context, index, -1), len(self.rows))
        self.cls_sum += sums
        self.contexts += counts

    def apply(self, bank: MemoryBank) -> int:
        """Pass the sums to `MemoryBank.update` and return its result; collective."""
        return bank.update(self.rows, self.local_sum, self.occurrences, self.cls_sum, self.contexts)
