"""The node that trials run on, as the planner takes it."""

from __future__ import annotations

import multiprocessing
import os
import platform
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import psutil
import torch

from trelm_ds.errors import UserError
from trelm_ds.planning.hardware import CPU, GIB, Device, device_of, measured
from trelm_ds.planning.plan import Machine

T = TypeVar("T")


def ranks_here(asked: int | None) -> int:
    """Return how many ranks this node is to have; by default one for each GPU, and one without.

    Raises:
        UserError: there are not so many GPUs.
    """
    gpus = torch.cuda.device_count()
    if gpus and (asked or 0) > gpus:
        raise UserError(f"--ranks: {asked}, but this node has {gpus} GPUs; ask for one rank a GPU at most")
    return asked or gpus or 1


def device_here(gpu: str) -> Device:
    """Return this node's device: measured ("this"), or with the figures of a known GPU.

    Raises:
        UserError: the name is unknown, or there is no GPU.
    """
    if not torch.cuda.is_available():
        if gpu != "this":
            raise UserError(f"--gpu: trials run on this machine, which has no GPU; leave out {gpu}")
        return measured()
    return _in_a_process(measured) if gpu == "this" else device_of(gpu)


def hardware() -> str:
    """Name what this node computes with, so that results of another are not taken for its own."""
    if torch.cuda.is_available():
        return _in_a_process(torch.cuda.get_device_name)
    try:
        listed = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        listed = ""
    model = re.search(r"^model name\s*: (.*)$", listed, re.MULTILINE)
    return f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores"


def _in_a_process(call: Callable[[], T]) -> T:
    """Call in a process of its own: a context on the GPU would take memory from the trials."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(call).result()


def this_node(device: Device, ranks: int, memory: int | None) -> Machine:
    """Return the node with its ranks, which share a CPU, but have a GPU each.

    Args:
        memory: bytes that a rank on a CPU may have; None for its part of what there is.

    Raises:
        UserError: there is not so much for each.
    """
    if device.name == CPU:
        flops = {precision: value / ranks for precision, value in device.flops.items()}
        own = device.memory // ranks if memory is None else memory
        if own * ranks > device.memory:
            there = f"this machine has {device.memory / GIB:.1f} GiB"
            raise UserError(f"--memory-limit: {own / GIB:.1f} GiB for each of {ranks} ranks, but {there}; lower it")
        device = device._replace(memory=own, flops=flops, bandwidth=device.bandwidth / ranks)
    return Machine(device, 1, ranks, psutil.virtual_memory().total)
