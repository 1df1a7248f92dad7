"""Run a function on real gloo ranks in processes of their own."""

from __future__ import annotations

import os
import pickle
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from tests.forked import FORKED, free_port, start

TIMEOUT_S = 300


def run_distributed_test(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """Call `function(*arguments)` on `world_size` ranks with torchrun's environment set.

    The function and what it returns must be picklable. It joins the process group itself (`connect()`).

    Returns:
        What each rank returned, by rank.

    Raises:
        AssertionError: a rank failed; its traceback is the message.
    """
    call, port = pickle.dumps((dict(os.environ), function, arguments)), free_port()
    ranks, results = [], {}
    try:
        for rank in range(world_size):
            ours, theirs = FORKED.Pipe(duplex=False)
            process: Any = FORKED.Process(target=_run, args=(call, rank, world_size, port, theirs))
            start(process)
            theirs.close()  # so that its end is the end of the process
            ranks.append((process, ours))
        waiting = {ours: rank for rank, (_, ours) in enumerate(ranks)}
        deadline = time.monotonic() + TIMEOUT_S
        while waiting:
            ready = wait(list(waiting), deadline - time.monotonic())
            assert ready, f"ranks {sorted(waiting.values())} do not end"
            for ours in ready:
                rank = waiting.pop(ours)  # type: ignore[index]
                results[rank] = _result(rank, *ranks[rank])
        return [results[rank] for rank in range(world_size)]
    finally:
        for process, ours in ranks:
            process.kill()
            process.join()
            ours.close()


def _result(rank: int, process: Any, connection: Connection) -> Any:
    try:
        value, error = pickle.loads(connection.recv_bytes())
    except EOFError:
        process.join(TIMEOUT_S)
        raise AssertionError(f"rank {rank} died, exit code {process.exitcode}") from None
    assert error is None, f"rank {rank} failed:\n{error}"
    return value


def _run(call: bytes, rank: int, world_size: int, port: int, result: Connection) -> None:
    try:
        variables, function, arguments = pickle.loads(call)
        os.environ |= variables | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        answer = pickle.dumps((function(*arguments), None))
    except BaseException:
        answer = pickle.dumps((None, traceback.format_exc()))
    result.send_bytes(answer)
