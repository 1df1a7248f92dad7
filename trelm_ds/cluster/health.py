"""Health check of nodes before training: GPUs, disk, clock, and all-reduce bandwidth.

Each node runs `main` once. It checks the node itself, writes an answer into a folder that all nodes see, and starts one
process per GPU, which connect to the others as in training. The batch script reads the answers: NODE.bad holds a
reason, NODE.here means that the node itself is sound, NODE.ok that its all-reduce with the others worked too.
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
_GPU_BYTES, _CPU_BYTES = 1 << 28, 1 << 24  # size of an all-reduce
_REPEATS = 5
_FREE_SHARE = 0.9  # least free share of a GPU's memory: less means that a process of an old job still holds some


class BadNodeError(Exception):
    """Raised for a node that should not train, with the reason."""


def main(argv: Sequence[str] | None = None) -> int:
    """Check this node, then start its processes with torchrun's arguments (after `--`) and check them with all others.

    Returns:
        0 if the node is sound, 1 if it is bad, else the launcher's exit code.
    """
    log.setup()
    arguments = list(sys.argv[1:] if argv is None else argv)
    own, torchrun_arguments = arguments, []
    if "--" in arguments:
        border = arguments.index("--")
        own, torchrun_arguments = arguments[:border], arguments[border + 1 :]
    parser = argparse.ArgumentParser(prog="health", allow_abbrev=False)
    parser.add_argument("--answers", type=Path, required=True, help="folder for the answers, visible to all nodes")
    parser.add_argument("--gpus", type=int, required=True, help="GPUs this node must have; 0 for a CPU node")
    parser.add_argument("--out", type=Path, required=True, help="run folder, checked for free space")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="how many neighbouring processes share a model")
    parser.add_argument("--process", action="store_true", help=argparse.SUPPRESS)  # one of those that main starts
    options = parser.parse_args(own)
    node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    try:
        if options.process:
            check_process(node, options.answers, options.tensor_parallel)
            return 0
        check_node(options.gpus, (options.out, Path(tempfile.gettempdir())))
    except BadNodeError as error:
        _answer(options.answers / f"{node}.bad", str(error))
        log.info(f"health: {node}: {error}")
        return 1
    _answer(options.answers / f"{node}.here", "")
    return launcher.main([*torchrun_arguments, "-m", "trelm_ds.cluster.health", *own, "--process"])


def check_node(gpus: int, folders: Sequence[Path]) -> None:
    """Check the node's GPUs and disks.

    Args:
        gpus: number of GPUs that must be visible; 0 skips the check.
        folders: folders that must be writable and have TRELM_MIN_DISK_GB free.

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


def check_process(node: str, answers: Path, degree: int = 1) -> None:
    """Check this process's GPU, then clock and all-reduce bandwidth with all others. Collective.

    Args:
        node: name of this node.
        answers: folder for the node's answer.
        degree: `model.tensor_parallel`, t; the t neighbours that share a model sum by themselves first.

    Raises:
        BadNodeError: the GPU computes wrongly or is in use, the node's clock is off, or an all-reduce fails or is too
            slow, among the processes of the node or among those that share a model.
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
    groups = {name: [rank for rank, other in enumerate(nodes) if other == name] for name in sorted(set(nodes))}
    # new_group is collective: every rank creates the groups of all nodes.
    within = {name: dist.new_group(ranks) for name, ranks in groups.items()}
    found = {"clock_skew_s": round(skew, 3)}
    shared: list[float] = []
    if degree > 1:
        shared = _bandwidths_of_groups(device, degree, groups[node], control)
        found["bus_gbps_tensor_parallel"] = min(shared)
    found["bus_gbps_within"] = round(bus_bandwidth(device, within[node]), 2)
    found["bus_gbps_all"] = round(bus_bandwidth(device, None), 2)
    dist.barrier(group=control)
    least = float(os.environ.get("TRELM_MIN_BUS_GBPS", "0"))
    limit = float(os.environ.get("TRELM_MAX_CLOCK_SKEW_S", "5"))
    problem = None
    if abs(skew) > limit:
        problem = f"clock is off by {skew:+.1f} s, TRELM_MAX_CLOCK_SKEW_S is {limit:g}"
    elif slow := [f"{_gpus(number, degree)} at {each} GB/s" for number, each in enumerate(shared) if each < least]:
        problem = f"{', '.join(slow)} sum within tensor-parallel groups, TRELM_MIN_BUS_GBPS is {least:g}"
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
    """Raise BadNodeError unless the GPU is free and its matrix products equal the CPU's, every time."""
    free, total = torch.cuda.mem_get_info(device)
    if free < _FREE_SHARE * total:
        raise BadNodeError(f"{device} is in use: {free / 1e9:.0f} of {total / 1e9:.0f} GB are free")
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-8, 8, (1024, 1024), generator=generator).to(torch.bfloat16) for _ in range(2))
    expected = a.float() @ b.float()  # whole numbers: exact in any order of summation
    for _ in range(3):
        if not torch.equal((a.to(device).float() @ b.to(device).float()).cpu(), expected):
            raise BadNodeError(f"{device} multiplies wrongly")


def _clock_skews(nodes: list[str], control: dist.ProcessGroup) -> dict[str, float]:
    """Return how many seconds each node's clock is ahead of the median.

    Clocks are read after a barrier, which all ranks leave within milliseconds.
    """
    dist.barrier(group=control)
    times: list[Any] = [None] * len(nodes)
    dist.all_gather_object(times, time.time(), group=control)
    middle = statistics.median(times)
    return {node: own - middle for node, own in zip(nodes, times, strict=True)}


def bus_bandwidth(device: torch.device, group: dist.ProcessGroup | None) -> float:
    """Measure the bus bandwidth of an all-reduce in GB/s: 2 (n - 1) / n * bytes / time, as in NCCL's tests.

    Args:
        device: device of the tensors.
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
    return 2 * (n - 1) / n * values.nbytes / min(seconds[1:]) / 1e9  # the first round sets up connections


def _bandwidths_of_groups(
    device: torch.device, degree: int, of_node: Sequence[int], control: dist.ProcessGroup
) -> list[float]:
    """Measure the bus bandwidth within each group of t neighbours on this node, in GB/s.

    Args:
        of_node: ranks on this node.
        control: group of all processes.

    Raises:
        BadNodeError: the all-reduce of this process's group fails.
    """
    group, _ = dist.new_subgroups(degree)
    try:
        own = round(bus_bandwidth(device, group), 2)
    except RuntimeError as error:
        gpus = _gpus(int(os.environ["LOCAL_RANK"]) // degree, degree)
        reason = " ".join(str(error).split())[:200]
        raise BadNodeError(f"{gpus} fail to sum as a tensor-parallel group: {reason}") from None
    measured: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(measured, own, group=control)
    speeds = [measured[rank] for rank in of_node]
    return [min(speeds[first : first + degree]) for first in range(0, len(speeds), degree)]


def _gpus(number: int, degree: int) -> str:
    """Name the GPUs of a node's group of t neighbours."""
    return f"GPUs {number * degree}-{(number + 1) * degree - 1}"


def _answer(path: Path, text: str) -> None:
    """Write an answer unless another process of the node already has."""
    with contextlib.suppress(FileExistsError), path.open("x") as file:
        file.write(text)


if __name__ == "__main__":
    sys.exit(main())
