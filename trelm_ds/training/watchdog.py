"""Ends a run in which nothing moves any more, and says where every rank was; knows which rank failed first."""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

import torch.distributed as dist

from trelm_ds import log
from trelm_ds.distributed import Ranks

EXIT_CODE = 71  # EX_OSERR: something below the program does not answer
STACKS = "stacks"  # in the run folder
_START_MINUTES = 60.0  # for what comes before the first step: loading, compiling
_PATIENT = 10  # times longer: a checkpoint to write, vectors to compute
_POLLS = 20  # of a limit
_PREFIX = "trelm/watchdog/"


class _Sign(NamedTuple):
    """A rank's heartbeat, sent from a thread even while training hangs."""

    at: float
    step: int
    host: str
    pid: int


class Watchdog:
    """Watches this rank's training from a thread of its own, and hears of the others through the store.

    Without an end of a step, or another `beat`, within the limit it writes the stacks of all threads of every rank that
    can still answer to `RUN/stacks/`, names the ranks that cannot, and ends the process with `EXIT_CODE`. The launcher
    ends the others then.

    Args:
        minutes: the limit; 0 watches nothing.
    """

    def __init__(self, ranks: Ranks, run: Path, minutes: float) -> None:
        self._ranks, self._folder, self._limit = ranks, run / STACKS, 60 * minutes
        self._store: dist.Store | None = None
        self._step, self._last = 0, time.monotonic()
        self._allowed = max(self._limit, 60 * _START_MINUTES)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        if self._limit:
            # A connection of its own: the process group's may be held by a collective that never ends.
            self._store = dist.distributed_c10d._get_default_store().clone() if self._ranks.world_size > 1 else None  # type: ignore[attr-defined]
            self.beat()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def beat(self) -> None:
        """Record progress."""
        self._last = time.monotonic()

    def stepped(self, step: int) -> None:
        """Record the end of a step; after the first, neither a step nor a collective may take longer than the limit."""
        first, self._step = self._step == 0, step
        if first and self._limit:
            self._allowed = self._limit
            # The watchdog speaks first, with more to say; this is for what stops its thread as well.
            timeout = datetime.timedelta(seconds=2 * _PATIENT * self._limit)
            for group in (None, self._ranks.control):
                dist.distributed_c10d._set_pg_timeout(timeout, group)
        self.beat()

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """Allow ten times the limit within the block."""
        before, self._allowed = self._allowed, max(self._allowed, _PATIENT * self._limit)
        self.beat()
        try:
            yield
        finally:
            self._allowed = before
            self.beat()

    def _watch(self) -> None:
        pause = min(10.0, self._limit / _POLLS)
        while not self._ended.wait(pause):
            self._say()
            late = time.monotonic() - self._last
            if late > self._allowed or self._called():
                self._call()
                self._dump()
                self._ended.wait(3 * pause)  # for the others' stacks and signs
                self._report(late, 6 * pause)
                os._exit(EXIT_CODE)

    def _key(self, name: object) -> str:
        return f"{_PREFIX}{name}"

    def _say(self) -> None:
        if self._store is not None:
            sign = _Sign(time.time(), self._step, socket.gethostname(), os.getpid())
            with contextlib.suppress(RuntimeError):  # the store is gone: its process has ended, and so will we
                self._store.set(self._key(self._ranks.rank), json.dumps(sign))

    def _called(self) -> bool:
        """Whether another rank has raised the alarm."""
        try:
            return self._store is not None and self._store.check([self._key("hang")])
        except RuntimeError:
            return False

    def _call(self) -> None:
        if self._store is not None:
            with contextlib.suppress(RuntimeError):
                self._store.set(self._key("hang"), str(self._ranks.rank))

    def _dump(self) -> None:
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / f"rank-{self._ranks.rank:05d}.txt").open("w") as stream:
                stream.write(f"step {self._step}, {socket.gethostname()}, process {os.getpid()}\n")
                stream.flush()
                faulthandler.dump_traceback(stream, all_threads=True)

    def _report(self, late: float, silent_s: float) -> None:
        """Print one line for all, from the first rank that can."""
        signs = self._signs()
        dead = {rank: sign for rank, sign in signs.items() if sign is None or time.time() - sign.at > silent_s}
        if self._ranks.rank != min((rank for rank in signs if rank not in dead), default=self._ranks.rank):
            return
        words = [_describe(rank, sign) for rank, sign in dead.items()]
        who = f"; {', '.join(words)} does not answer" if words else ""
        log.error(
            f"nothing has moved for {late:,.0f} s after step {self._step}{who}; "
            f"where the ranks were is in {self._folder}; the same command continues from the last checkpoint"
        )

    def _signs(self) -> dict[int, _Sign | None]:
        found: dict[int, _Sign | None] = {}
        for rank in range(self._ranks.world_size):
            found[rank] = None
            if rank == self._ranks.rank:
                found[rank] = _Sign(time.time(), self._step, socket.gethostname(), os.getpid())
            elif self._store is not None:
                with contextlib.suppress(RuntimeError):
                    if self._store.check([self._key(rank)]):
                        found[rank] = _Sign(*json.loads(self._store.get(self._key(rank))))
        return found


def _describe(rank: int, sign: _Sign | None) -> str:
    if sign is None:
        return f"rank {rank}"
    state = ""
    if sign.host == socket.gethostname():
        try:
            status = Path(f"/proc/{sign.pid}/status").read_text(encoding="ascii", errors="replace")
            state = ": " + next(line for line in status.splitlines() if line.startswith("State:")).split("\t")[1]
        except (OSError, StopIteration, IndexError):
            state = ": no such process"
    return f"rank {rank} (process {sign.pid} on {sign.host}{state})"
