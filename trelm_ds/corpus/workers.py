"""A pool of worker processes that do not outlive their parent, with a bounded number of tasks in flight."""

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


def _init_worker(parent: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes already use all cores
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which then ends its workers
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # die with the parent, even if that is killed
    if os.getppid() != parent:  # it died before prctl took effect
        os._exit(1)


def run(function: Callable[[Task], Result], tasks: Iterator[Task], workers: int) -> Iterator[Result]:
    """Run tasks and yield their results as they complete, in any order.

    Args:
        function: a function at the top level of a module, so that workers can import it.
        tasks: consumed as workers become free, so that tasks may carry data.
        workers: number of processes; with 1 everything runs in this one.

    Raises:
        UserError: raised by a task, or a worker was killed.
    """
    if workers == 1:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")  # forking a process with threads is not safe
    pool = ProcessPoolExecutor(workers, context, _init_worker, (os.getpid(),))
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
            process.kill()  # unfinished tasks leave nothing worth waiting for
        pool.shutdown(wait=True, cancel_futures=True)


def _finished(running: set[Future[Result]]) -> list[Result]:
    """Wait for at least one future, remove the finished ones from `running`, and return their results."""
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    running -= done
    return [future.result() for future in done]
