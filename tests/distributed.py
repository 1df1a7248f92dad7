"""Runs a function on real gloo ranks in processes of their own."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp

TIMEOUT_S = 300


def run_distributed_test(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """Calls `function(*arguments)` on `world_size` ranks with torchrun's environment set.

    The function and what it returns must be picklable. It joins the process group itself (`connect()`).

    Returns:
        what each rank returned, by rank.

    Raises:
        AssertionError: a rank failed; its traceback is the message.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.Queue()
    ranks = [
        context.Process(target=_run, args=(function, rank, world_size, port, queue, arguments))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    try:
        results: dict[int, Any] = {}
        for _ in ranks:
            rank, value, error = queue.get(timeout=TIMEOUT_S)
            assert error is None, f"rank {rank} failed:\n{error}"
            results[rank] = value
        for process in ranks:
            process.join(timeout=TIMEOUT_S)
        return [results[rank] for rank in range(world_size)]
    finally:
        for process in ranks:
            process.kill()


def _run(
    function: Callable[..., Any], rank: int, world_size: int, port: int, queue: Any, arguments: tuple[Any, ...]
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        queue.put((rank, function(*arguments), None))
    except BaseException:
        queue.put((rank, None, traceback.format_exc()))
