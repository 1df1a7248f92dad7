"""Runs tasks in worker processes that neither outlive this one nor flood it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from trelm_ds.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")
_PR_SET_PDEATHSIG = 1


def _become_worker(parent: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core, one thread a process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a killed parent takes its workers along
    if os.getppid() != parent:
        os._exit(1)


def run(function: Callable[[Task], Result], tasks: Iterator[Task], workers: int) -> Iterator[Result]:
    """Yields the results as they come, in any order.

    Args:
        function: importable by its module's name.
        tasks: taken as workers become free, so that a task may carry data.
        workers: processes; with 1 everything happens in this one.

    Raises:
        UserError: raised by a task, or a worker was killed.
    """
    if workers == 1:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")  # forking a process with threads is not safe
    pool = ProcessPoolExecutor(workers, context, _become_worker, (os.getpid(),))
    running: set[Future[Result]] = set()
    try:
        for task in tasks:
            running.add(pool.submit(function, task))
            while len(running) > 2 * workers:
                yield from _finished(running)
        while running:
            yield from _finished(running)
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, most likely for lack of memory; run again with a smaller --workers, finished "
            "work is kept"
        ) from None
    finally:
        for process in list((pool._processes or {}).values()) if running else []:
            process.kill()  # unfinished work is worth nothing
        pool.shutdown(wait=True, cancel_futures=True)


def _finished(running: set[Future[Result]]) -> list[Result]:
    """Waits for at least one future and takes the finished ones out of `running`."""
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    running -= done
    return [future.result() for future in done]
