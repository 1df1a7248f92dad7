"""The knowledge-augmented memory bank (paper 3.2, Eq. 4-8), spread over the ranks."""

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

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def memory_window(
    first: np.ndarray, last: np.ndarray, start: np.ndarray, stop: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens l-k .. r+k of Eq. 4 that exist.

    Args:
        first, last: int [I], l and r: a mention's first and last token, last included.
        start, stop: int [I], first and last + 1 of the tokens of its sequence that are not special.
        k: half the window.

    Returns:
        first and last + 1 of the window, int [I] each.
    """
    begin = np.clip(first - k, start, stop)
    return begin, np.clip(last + k + 1, begin, stop)


def local_memories(states: Tensor, window: Tensor) -> Tensor:
    """Eq. 4: the mean of the last layer's states over a window around each mention, outside of autograd.

    It divides by the number of states it sums (the paper's 2k + r - l is off by one, and knows no sequence ends).

    Args:
        states: [T, D], of any float dtype; sums are fp32.
        window: int64 [I, 2], first and last + 1 of the rows to average (`memory_window`), on any device; where it is
            on the GPU, this waits for the GPU to learn how many rows there are in all.

    Returns:
        float32 [I, D]; 0 where a window is empty. Deterministic: see `sum_by_row`.
    """
    if not len(window):
        return states.new_zeros(0, states.shape[1], dtype=torch.float32)
    begin, lengths = window[:, 0], window[:, 1] - window[:, 0]
    offsets = F.pad(lengths.cumsum(0), (1, 0))
    rows = torch.repeat_interleave(begin - offsets[:-1], lengths)
    rows = (rows + torch.arange(len(rows), device=rows.device)).to(states.device)
    offsets = offsets.to(states.device)
    return F.embedding_bag(rows, states.detach().float(), offsets, mode="mean", include_last_offset=True)


def sum_by_row(values: Tensor, rows: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """The sums and numbers of the values that belong to each row, the same to the bit on every call.

    Not `index_add`, whose atomic additions come in any order on a GPU: after a stable sort, `embedding_bag` adds up
    each row in one thread per column, in the order of `values`, on CPU and GPU.

    Args:
        values: float32 [I, W].
        rows: int64 [I] in 0 .. n_rows - 1; -1: belongs to none.

    Returns:
        float32 [n_rows, W], int64 [n_rows].
    """
    if not len(rows):
        return values.new_zeros(n_rows, values.shape[1]), rows.new_zeros(n_rows)
    ascending, order = torch.sort(rows, stable=True)
    # One bag more in front, for the -1, so that nothing waits for the GPU to learn how many there are.
    offsets = torch.searchsorted(ascending, torch.arange(-1, n_rows + 1, device=rows.device))
    sums = F.embedding_bag(order, values, offsets, mode="sum", include_last_offset=True)
    return sums[1:], offsets.diff()[1:]


def memory_lambda(settings: MemoryConfig, step: int, max_steps: int, epoch: int) -> float:
    """Eq. 8: how much of an embedding is memory: lambda_0 / beta^q, and 0 in the last part of the training.

    Args:
        settings: q is the epoch, or counts `decay_every_steps`.
        step: optimizer steps done before this one.
        max_steps: of the whole run.
        epoch: from 0.
    """
    # Rounded, because 100 * (1 - 0.43) is 57.00000000000001.
    if step >= math.ceil(round(max_steps * (1 - settings.release_fraction), 6)):
        return 0.0
    q = step // settings.decay_every_steps if settings.decay_every_steps else epoch
    return settings.initial_lambda * settings.beta**-q  # beta^q would overflow


class Memories(NamedTuple):
    """What the bank holds of n rows.

    Attributes:
        local, global_: [n, D], in the bank's dtype, on its device.
        seen: bool [n], whether the row has ever been updated; else it holds what it started with.
    """

    local: Tensor
    global_: Tensor
    seen: Tensor


class MemoryLookup(NamedTuple):
    """A look-up on its way."""

    memories: Lookup
    contexts: Lookup

    def wait(self) -> Memories:
        local, global_ = self.memories.wait().chunk(2, dim=1)
        return Memories(local, global_, self.contexts.wait()[:, 0] > 0)


class MemoryBank:
    """Local and global memory of R entities and words, and the number of contexts that each has had.

    In bf16 a running mean no longer moves once a row has had some hundreds of contexts: what they add is less than
    half a unit in the last place. An average with gamma keeps moving, if in coarse steps.

    Args:
        n_rows: R.
        size: D.
        settings: gamma, form of Eq. 6, dtype, placement.
        device: of the model; the bank is there too, unless `settings.placement` is cpu.
        group: the ranks that share it.

    Attributes:
        table: [R, 2 D], local memory beside global memory, so that one exchange fetches both.
        contexts: int64 [R, 1], the contexts of Eq. 6 so far.
    """

    def __init__(self, n_rows: int, size: int, settings: MemoryConfig, device: torch.device, group: TableGroup) -> None:
        device = torch.device("cpu") if settings.placement == "cpu" else device
        self.size, self.settings = size, settings
        self.table = ShardedTable(n_rows, 2 * size, _DTYPES[settings.dtype], device, group)
        self.contexts = ShardedTable(n_rows, 1, torch.int64, device, group)

    @property
    def bytes(self) -> int:
        """Of this rank's share."""
        return self.table.bytes + self.contexts.bytes

    @property
    def filled_rows(self) -> int:
        """How many of this rank's rows have ever been updated."""
        return int((self.contexts.local > 0).sum())

    def initialise(self, vectors_of: Callable[[Tensor], Tensor], batch: int = 8192) -> None:
        """Starts both memories of every row, as of no context: paper 3.2, from the pre-trained word embeddings.

        Every rank makes the same number of calls, perhaps with no row, and nothing else is collective.

        Args:
            vectors_of: from rows, int64 [n] on the CPU, to vectors [n, D].
            batch: the most rows of a call.
        """
        self.table.fill(lambda rows: vectors_of(rows).repeat(1, 2), batch)
        self.contexts.local.zero_()

    def start_lookup(self, rows: Tensor) -> MemoryLookup:
        """Starts to fetch rows, int64 [n] on the CPU, whose `wait()` gives `Memories`; collective."""
        route = self.table.route(rows)
        return MemoryLookup(self.table.start_lookup(route), self.contexts.start_lookup(route))

    def update(self, rows: Tensor, local_sum: Tensor, occurrences: Tensor, cls_sum: Tensor, contexts: Tensor) -> int:
        """Eq. 5 and 6 for all that one optimizer step has seen on all ranks; collective, once a step.

        A row's c occurrences count at once, whatever their order and rank: local memory goes 1 - (1 - gamma)^c of the
        way to their mean, which is c steps of Eq. 5 towards it. Global memory becomes the mean over all contexts so
        far, or goes 1 - (1 - gamma)^c of the way to the mean of c new ones. Computed in fp32.

        Args:
            rows: int64 [U] on the CPU, each once; U may be 0.
            local_sum: float32 [U, D], the sum of Eq. 4 over this rank's occurrences of each row.
            occurrences: int64 [U], their number; less than 2^24.
            cls_sum: float32 [U, D], the sum of the first tokens' states over this rank's contexts of each row.
            contexts: int64 [U], their number: at least 1 where there is an occurrence.

        Returns:
            the number of distinct rows that this owner was sent.
        """
        counts = torch.stack([occurrences, contexts], dim=1).to(local_sum)  # exact: floats below 2^24
        named, values = self.table.send(rows, torch.cat([local_sum, cls_sum, counts], dim=1))
        distinct, index = torch.unique(named, return_inverse=True)
        sums, _ = sum_by_row(values, index.to(values.device), len(distinct))
        local_sum, cls_sum, counts = sums.split([self.size, self.size, 2], dim=1)
        seen, new = counts.double().split(1, dim=1)

        places = self.table.place(distinct)
        before = self.contexts.local[places]
        local_weight, global_weight = (1 - (1 - self.settings.gamma) ** count for count in (seen, new))
        if self.settings.global_update == "mean":
            global_weight = new / (before + new).clamp(min=1)  # 1 at the first: the start value counts for nothing
        local, global_ = self.table.local[places].float().chunk(2, dim=1)
        local = torch.lerp(local, local_sum / seen.clamp(min=1).float(), local_weight.float())
        global_ = torch.lerp(global_, cls_sum / new.clamp(min=1).float(), global_weight.float())
        self.table.local[places] = torch.cat([local, global_], dim=1).to(self.table.local)
        self.contexts.local[places] = before + new.long()
        return len(distinct)

    def save(self, folder: Path) -> list[Path]:
        """Writes this rank's share, into a folder that all ranks share; returns the files."""
        return [self.table.save(folder, "memory"), self.contexts.save(folder, "memory-contexts")]

    def load(self, folder: Path) -> None:
        """Reads what any number of ranks saved.

        Raises:
            UserError: a file is missing, cannot be read, or is of another bank.
        """
        self.table.load(folder, "memory")
        self.contexts.load(folder, "memory-contexts")


class MemoryUpdate:
    """What a step's micro-batches add to the memory of its U rows: the sums that `MemoryBank.update` takes.

    Args:
        rows: int64 [U] on the CPU, the step's rows, each once.
        size: D.
        device: of the states.
    """

    def __init__(self, rows: Tensor, size: int, device: torch.device) -> None:
        self.rows = rows
        self.local_sum = torch.zeros(len(rows), size, device=device)
        self.cls_sum = torch.zeros_like(self.local_sum)
        self.occurrences = torch.zeros(len(rows), dtype=torch.int64, device=device)
        self.contexts = torch.zeros_like(self.occurrences)

    def add(self, index: Tensor, local: Tensor, cls_states: Tensor, new_context: Tensor) -> None:
        """Adds a micro-batch's I items; all on the states' device.

        Args:
            index: int64 [I], which of the U rows each item is about; -1: none.
            local: float32 [I, D], Eq. 4 (`local_memories`).
            cls_states: [I, D], the state of the first token of each item's sequence.
            new_context: bool [I], whether the item is the first of its row in its sequence.
        """
        sums, counts = sum_by_row(local.detach(), index, len(self.rows))
        self.local_sum += sums
        self.occurrences += counts
        sums, counts = sum_by_row(cls_states.detach().float(), torch.where(new_context, index, -1), len(self.rows))
        self.cls_sum += sums
        self.contexts += counts

    def apply(self, bank: MemoryBank) -> int:
        """`MemoryBank.update` with the sums; collective. Returns the distinct rows that this owner was sent."""
        return bank.update(self.rows, self.local_sum, self.occurrences, self.cls_sum, self.contexts)
