"""A table whose rows are sharded over the ranks: read and written with all-to-all, resharded on load."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trelm_ds.distributed import Ranks
from trelm_ds.errors import UserError
from trelm_ds.streams import on_device


@dataclass(frozen=True)
class TableGroup:
    """N ranks that share tables. `TableGroup()` is a world of one, which never communicates.

    Tables have process groups of their own: on a communicator shared with DeepSpeed, an all-to-all could be issued in a
    different order relative to DeepSpeed's collectives on different ranks, and deadlock.

    Attributes:
        rank, world_size: this process among the N.
        control: gloo group for row numbers, counts, and the values of tables on the CPU.
        payload: NCCL group for the values of tables on a GPU; None if no table is on one.
    """

    rank: int = 0
    world_size: int = 1
    control: dist.ProcessGroup | None = None
    payload: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, ranks: Ranks) -> TableGroup:
        """Create groups of some ranks, on whose device tables may live; collective over all ranks."""
        if ranks.world_size == 1:
            return cls()
        payload = ranks.new_group("nccl") if ranks.device.type == "cuda" else None
        return cls(ranks.rank, ranks.world_size, ranks.new_group("gloo"), payload)

    @classmethod
    def of_all_ranks(cls, device: torch.device) -> TableGroup:
        """Create groups of all ranks of the default process group; collective. `device` is where tables may live."""
        world: dist.ProcessGroup = dist.group.WORLD  # type: ignore[assignment]
        return cls.of(Ranks(dist.get_rank(), dist.get_world_size(), 0, device, control=world))

    def group_for(self, device: torch.device) -> dist.ProcessGroup | None:
        """Return the group for values on `device`."""
        return self.control if device.type == "cpu" else self.payload

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over the ranks in place, and return it; collective."""
        if self.world_size > 1:
            dist.all_reduce(values, group=self.group_for(values.device))
        return values


@dataclass(frozen=True)
class Route:
    """Which rows this rank requests from each owner, and which of its own rows the others request.

    Made by `ShardedTable.route`.

    Attributes:
        order: int64 [n], stable permutation that sorts the n requested rows by owner.
        sent: number of rows requested from each of the N ranks.
        rows: int64 [m], rows requested from this rank: by requesting rank, then in the order of its request.
        received: number of rows requested by each of the N ranks.
    """

    order: Tensor
    sent: list[int]
    rows: Tensor
    received: list[int]


class Lookup:
    """A lookup in progress."""

    def __init__(self, values: Tensor, order: Tensor, exchange: tuple[dist.Work, Tensor] | None) -> None:
        self._values, self._order, self._exchange = values, order, exchange

    def wait(self) -> Tensor:
        """Wait for the rows [n, W], in the order requested; on the table's device.

        Their values are those at the time all ranks had started the lookup.
        """
        if self._exchange is not None:
            work, _ = self._exchange  # the second keeps the send buffer alive until it has been sent
            work.wait()
            self._values = torch.empty_like(self._values).index_copy_(0, self._order, self._values)
            self._exchange = None
        return self._values


class ShardedTable:
    """A table [R, W] over N ranks, initially zero: rank r mod N owns row r, at index r // N of its shard.

    Attributes:
        n_rows: R.
        width: W.
        local: [R_local, W], this rank's shard.
    """

    def __init__(self, n_rows: int, width: int, dtype: torch.dtype, device: torch.device, group: TableGroup) -> None:
        self.n_rows, self.width, self.group = n_rows, width, group
        self.local = torch.zeros(len(self._rows_of(group.rank, group.world_size)), width, dtype=dtype, device=device)

    def _rows_of(self, rank: int, world_size: int) -> Tensor:
        return torch.arange(min(rank, self.n_rows), self.n_rows, world_size)

    @property
    def _size(self) -> str:
        return f"{self.n_rows} rows x {self.width}"

    @property
    def owned(self) -> Tensor:
        """The rows of this rank's shard, int64 [R_local], ascending."""
        return self._rows_of(self.group.rank, self.group.world_size)

    @property
    def bytes(self) -> int:
        """Size of this rank's shard in bytes."""
        return self.local.numel() * self.local.element_size()

    def place(self, rows: Tensor) -> Tensor:
        """Map rows [m] owned by this rank to their indices in `local`, int64 [m] on its device."""
        return on_device(rows // self.group.world_size, self.local.device)

    def fill(self, values_of: Callable[[Tensor], Tensor], batch: int = 8192) -> None:
        """Set every row; each rank sets its own.

        Every rank calls `values_of` the same number of times, the last times possibly with no rows, because it may be
        collective: under ZeRO-3, reading the model's parameters is.

        Args:
            values_of: maps rows, int64 [n] on the CPU, to their values [n, W].
            batch: maximum number of rows per call.
        """
        owned = self.owned
        most = len(self._rows_of(0, self.group.world_size))
        for first in range(0, most, batch):
            rows = owned[first : first + batch]
            values = values_of(rows)
            assert values.shape == (len(rows), self.width), f"{values.shape} for {len(rows)} rows of {self.width}"
            self.local[first : first + len(rows)] = values.to(self.local)

    def route(self, rows: Tensor) -> Route:
        """Tell the owners which `rows`, int64 [n] on the CPU, this rank requests; collective on the CPU. n may be 0.

        A route can be reused for any number of lookups in tables with the same R and the same ranks.
        """
        assert (rows.dtype, rows.device.type) == (torch.int64, "cpu")
        assert not len(rows) or 0 <= int(rows.min()) <= int(rows.max()) < self.n_rows, "no such row"
        size = self.group.world_size
        if size == 1:
            return Route(torch.arange(len(rows)), [len(rows)], rows, [len(rows)])
        owners = rows % size
        order = torch.argsort(owners, stable=True)
        sent = torch.bincount(owners, minlength=size)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self.group.control)
        named = torch.empty(int(received.sum()), dtype=torch.int64)
        dist.all_to_all_single(named, rows[order], received.tolist(), sent.tolist(), group=self.group.control)
        return Route(order, sent.tolist(), named, received.tolist())

    def start_lookup(self, rows: Tensor | Route) -> Lookup:
        """Start fetching rows; collective. The transfer overlaps with computation until the caller waits.

        Args:
            rows: int64 [n] on the CPU, may repeat, n may be 0; or the route of such rows.
        """
        route = rows if isinstance(rows, Route) else self.route(rows)
        found = self.local.index_select(0, self.place(route.rows))
        if self.group.world_size == 1:
            return Lookup(found, route.order, None)
        values = found.new_empty(len(route.order), self.width)
        work = self._all_to_all(values, found, route.sent, route.received)
        return Lookup(values, on_device(route.order, values.device), (work, found))

    def send(self, rows: Tensor | Route, values: Tensor) -> tuple[Tensor, Tensor]:
        """Send values to the owners of their rows; collective.

        Args:
            rows: int64 [n] on the CPU; n may be 0. Or the route of such rows.
            values: [n, W'], any width and dtype.

        Returns:
            what all ranks sent to this one: rows int64 [m] on the CPU and values [m, W'] on the table's device, ordered
            by sending rank, then as sent.
        """
        values = on_device(values, self.local.device)
        route = rows if isinstance(rows, Route) else self.route(rows)
        if self.group.world_size == 1:
            return route.rows, values
        arrived = values.new_empty(len(route.rows), *values.shape[1:])
        sorted_values = values.index_select(0, on_device(route.order, values.device))
        self._all_to_all(arrived, sorted_values, route.received, route.sent).wait()
        return route.rows, arrived

    def _all_to_all(self, output: Tensor, values: Tensor, received: list[int], sent: list[int]) -> dist.Work:
        group = self.group.group_for(values.device)
        assert group is not None, f"no group for values on {values.device}"
        return dist.all_to_all_single(output, values, received, sent, group=group, async_op=True)

    def save(self, folder: Path, name: str) -> Path:
        """Write this rank's shard to `folder/{name}-{rank}-of-{N}.safetensors`; return the path.

        Raises:
            OSError: the file cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}-{self.group.rank:05d}-of-{self.group.world_size:05d}.safetensors"
        try:
            # A single metadata entry: safetensors writes several in arbitrary order, so equal tables would differ.
            save_file({"rows": self.local}, path, {"table": self._size})
        except SafetensorError as error:  # raised, for instance, when the disk is full
            raise OSError(f"{path}: {error}") from error
        return path

    @staticmethod
    def saved(folder: Path, name: str, width: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield, one after another, what any number of ranks saved: which rows, and their first `width` columns.

        Raises:
            UserError: a shard is missing or cannot be read.
        """
        shards = _find_shards(folder, name)
        for rank, path in enumerate(shards):
            yield slice(rank, None, len(shards)), _open_shard(path, width)[1]

    def load(self, folder: Path, name: str) -> None:
        """Load this rank's rows from what any number of ranks saved, with one saved shard in memory at a time.

        Values are converted to the table's dtype.

        Raises:
            UserError: a shard is missing, cannot be read, or belongs to a table of another size.
        """
        for _ in self.load_showing(folder, name, 0):
            pass

    def load_showing(self, folder: Path, name: str, width: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Load as `load` does, and yield of each saved shard its row numbers, int64 [n], and their first columns.

        Args:
            folder, name: as in `save`.
            width: how many columns to yield; of shards without a row of this rank, no others are read.

        Raises:
            UserError: as `load`.
        """
        for rank, path in enumerate(shards := _find_shards(folder, name)):
            rows = self._rows_of(rank, len(shards))
            mine = rows % self.group.world_size == self.group.rank
            values = self._read_shard(path, len(rows), self.width if mine.any() else width)
            if mine.any():
                self.local[self.place(rows[mine])] = values[mine].to(self.local)
            yield rows, values[:, :width]

    def _read_shard(self, path: Path, n_rows: int, width: int) -> Tensor:
        about, rows = _open_shard(path, width)
        if about.get("table") != self._size or rows.shape != (n_rows, width):
            raise UserError(
                f"{path}: of a table of {about.get('table', 'unknown size')}, this run's has {self._size}; "
                "go on with the dataset, selection and model that it was saved with"
            )
        return rows


def _open_shard(path: Path, width: int | None = None) -> tuple[dict[str, str], Tensor]:
    """Read what a shard says of its table, and its rows, or only their first `width` columns."""
    try:
        with safe_open(path, "pt") as shard:
            return shard.metadata() or {}, shard.get_slice("rows")[:, :width]
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); restore it") from None


def _find_shards(folder: Path, name: str) -> list[Path]:
    """List the saved shards of a table, ordered by the rank that wrote them.

    Raises:
        UserError: there are none, some are missing, or there are sets from different numbers of ranks.
    """
    matches = [re.fullmatch(rf"{re.escape(name)}-(\d+)-of-(\d+)\.safetensors", path.name) for path in folder.glob("*")]
    found = sorted((int(match[2]), int(match[1]), match[0]) for match in matches if match)
    if not found:
        raise UserError(f"{folder}: holds no {name}-*-of-*.safetensors; restore them, or take another checkpoint")
    sizes = sorted({size for size, _, _ in found})
    if len(sizes) > 1:
        raise UserError(f"{folder}: holds {name} as saved by {sizes} ranks; leave the files of one of them")
    if missing := sorted(set(range(sizes[0])) - {rank for _, rank, _ in found}):
        raise UserError(f"{folder}: {name} lacks shard {missing[0]} of {sizes[0]}, counted from 0; restore it")
    return [folder / path for _, _, path in found]
