"""Whether nodes can train: GPUs, disk, clock, and how fast they sum over NCCL.

Every node runs `main` once. It looks at the node itself, writes an answer into a folder that all nodes see, and starts
a process for each GPU, which meet the others as in training. The batch script reads the answers: NODE.bad holds a
reason, NODE.here says that the node itself is sound, NODE.ok that it has also summed with the others.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trelm_ds import log
from trelm_ds.cluster import launcher

_TIMEOUT = datetime.timedelta(seconds=120)
_GPU_BYTES, _CPU_BYTES = 1 << 28, 1 << 24  # of an all-reduce
_REPEATS = 5
_FREE_SHARE = 0.9  # of a GPU's memory: less means that a dead job's process still has it


class BadNodeError(Exception):
    """This node should not train; the message says why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Checks this node, then with torchrun's arguments after `--` its processes beside those of all others.

    Returns:
        0, 1 where the node is bad, else the launcher's exit code.
    """
    log.setup()
    arguments = list(sys.argv[1:] if argv is None else argv)
    own, of_torchrun = arguments, []
    if "--" in arguments:
        border = arguments.index("--")
        own, of_torchrun = arguments[:border], arguments[border + 1 :]
    parser = argparse.ArgumentParser(prog="health", allow_abbrev=False)
    parser.add_argument("--answers", type=Path, required=True, help="folder that all nodes see")
    parser.add_argument("--gpus", type=int, required=True, help="that this node must have; 0 for a CPU node")
    parser.add_argument("--out", type=Path, required=True, help="run folder: its disk needs room")
    options = parser.parse_args(own)
    node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    try:
        if "RANK" in os.environ:
            check_process(node, options.answers)
            return 0
        check_node(options.gpus, (options.out, Path(tempfile.gettempdir())))
    except BadNodeError as error:
        _answer(options.answers / f"{node}.bad", str(error))
        log.info(f"health: {node}: {error}")
        return 1
    _answer(options.answers / f"{node}.here", "")
    return launcher.main([*of_torchrun, "-m", "trelm_ds.cluster.health", *own])


def check_node(gpus: int, folders: Sequence[Path]) -> None:
    """What one process sees of the node.

    Args:
        gpus: that it must have.
        folders: that it must be able to write into.

    Raises:
        BadNodeError: another number of GPUs, or a folder that is missing, read-only or full.
    """
    if gpus and (found := torch.cuda.device_count()) != gpus:
        raise BadNodeError(f"{found} of {gpus} GPUs are visible")
    least = float(os.environ.get("TRELM_MIN_DISK_GB", "5"))
    for folder in folders:
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(4096))
                file.flush()
                os.fsync(file.fileno())
            free = shutil.disk_usage(folder).free / 1e9
        except OSError as error:
            raise BadNodeError(f"cannot write into {folder}: {error.strerror}") from None
        if free < least:
            raise BadNodeError(f"{folder} has {free:.1f} GB free, TRELM_MIN_DISK_GB is {least:g}")


def check_process(node: str, answers: Path) -> None:
    """One process of torchrun's: its GPU, then clocks and sums with all others; collective.

    Raises:
        BadNodeError: the GPU computes wrongly or is in use, the node's clock is off, or it sums too slowly.
    """
    local_rank, on_gpu = int(os.environ["LOCAL_RANK"]), torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
        check_gpu(device)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=_TIMEOUT, device_id=device if on_gpu else None)
    control = dist.new_group(backend="gloo", timeout=_TIMEOUT)
    nodes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(nodes, node, group=control)
    skew = _clock_skews(nodes, control)[node]
    groups = {name: [rank for rank, of in enumerate(nodes) if of == name] for name in sorted(set(nodes))}
    within = {name: dist.new_group(ranks) for name, ranks in groups.items()}  # each rank makes all of them
    found = {"clock_skew_s": round(skew, 3)}
    found["bus_gbps_within"] = round(bus_bandwidth(device, within[node]), 2)
    found["bus_gbps_all"] = round(bus_bandwidth(device, None), 2)
    dist.barrier(group=control)
    least = float(os.environ.get("TRELM_MIN_BUS_GBPS", "0"))
    limit = float(os.environ.get("TRELM_MAX_CLOCK_SKEW_S", "5"))
    problem = None
    if abs(skew) > limit:
        problem = f"clock is off by {skew:+.1f} s, TRELM_MAX_CLOCK_SKEW_S is {limit:g}"
    elif nodes.count(node) > 1 and found["bus_gbps_within"] < least:
        problem = f"GPUs sum at {found['bus_gbps_within']} GB/s, TRELM_MIN_BUS_GBPS is {least:g}"
    if local_rank == 0 and problem is None:
        _answer(answers / f"{node}.ok", json.dumps(found))
        log.info(f"health: {node}: {json.dumps(found)}")
    dist.barrier(group=control)
    dist.destroy_process_group()
    if problem is not None:
        raise BadNodeError(problem)


def check_gpu(device: torch.device) -> None:
    """Raises BadNodeError unless the GPU is free and multiplies the same twice, and as the CPU does."""
    free, total = torch.cuda.mem_get_info(device)
    if free < _FREE_SHARE * total:
        raise BadNodeError(f"{device} is in use: {free / 1e9:.0f} of {total / 1e9:.0f} GB are free")
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-8, 8, (1024, 1024), generator=generator).to(torch.bfloat16) for _ in range(2))
    expected = a.float() @ b.float()  # whole numbers, exact in any order
    for _ in range(3):
        if not torch.equal((a.to(device).float() @ b.to(device).float()).cpu(), expected):
            raise BadNodeError(f"{device} multiplies wrongly")


def _clock_skews(nodes: list[str], control: dist.ProcessGroup) -> dict[str, float]:
    """Seconds by which each node's clock is ahead of the median, after a barrier that all leave within milliseconds."""
    dist.barrier(group=control)
    times: list[Any] = [None] * len(nodes)
    dist.all_gather_object(times, time.time(), group=control)
    middle = statistics.median(times)
    return {node: own - middle for node, own in zip(nodes, times, strict=True)}


def bus_bandwidth(device: torch.device, group: dist.ProcessGroup | None) -> float:
    """Bus bandwidth of a sum over a group in GB/s: 2 (n - 1) / n times bytes over time, as NCCL's tests have it.

    Args:
        device: whose memory is summed.
        group: None for all processes.
    """
    n = dist.get_world_size(group)
    values = torch.ones((_GPU_BYTES if device.type == "cuda" else _CPU_BYTES) // 4, device=device)
    seconds = []
    for _ in range(_REPEATS + 1):
        dist.barrier(group=group)
        start = time.perf_counter()
        dist.all_reduce(values, group=group)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * (n - 1) / n * values.nbytes / min(seconds[1:]) / 1e9  # the first one sets up connections


def _answer(path: Path, text: str) -> None:
    """The first answer of a node's processes stands."""
    with contextlib.suppress(FileExistsError), path.open("x") as file:
        file.write(text)


if __name__ == "__main__":
    sys.exit(main())
