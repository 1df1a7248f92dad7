"""Devices and their links, with the speeds that the planner reckons with."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from trelm_ds.errors import UserError
from trelm_ds.model import PEAKS

GB, MIB, GIB = 10**9, 2**20, 2**30
CPU = "this CPU"  # name of the device where there is no other
# Shares of the vendor's figures that large matrix products and copies attain, and what a kernel costs at least.
MATMUL_SHARE, BANDWIDTH_SHARE, LAUNCH_S = 0.8, 0.85, 5e-6


class Device(NamedTuple):
    """A device, and its share of the links, as the vendor states them unless measured."""

    name: str
    memory: int
    """bytes"""
    flops: dict[str, float]
    """FLOP/s of dense matrix products with fp32 sums, by precision"""
    bandwidth: float
    """bytes/s of its memory"""
    node_link: float
    """bytes/s that it sends to others of its node"""
    network: float
    """bytes/s that its network card sends to other nodes; a node has as many cards as GPUs"""
    host_link: float = 25 * GB
    """bytes/s to the memory of the CPU"""
    launch_s: float = LAUNCH_S
    """seconds that an operation takes at least"""
    note: str = ""
    """where figures are assumed or measured: which"""

    @property
    def attained(self) -> Device:
        """The same with the speeds that programs attain."""
        flops = {precision: MATMUL_SHARE * value for precision, value in self.flops.items()}
        return self._replace(flops=flops, bandwidth=BANDWIDTH_SHARE * self.bandwidth)


def _gpu(name: str, gib: int, fp32: float, bandwidth: float, node_link: float, network: float) -> Device:
    flops = {"bf16": PEAKS[name.split("-")[0].upper()] * 1e12, "fp32": fp32 * 1e12}
    return Device(name, gib * GIB, flops, bandwidth * 1e12, node_link * GB, network * GB)


# GiB, TFLOP/s in fp32 (no TF32: torch's default), TB/s, GB/s over NVLink, GB/s over one 200 or 400 Gbit/s card.
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("a100-40g", 40, 19.5, 1.555, 300, 25),
        _gpu("a100-80g", 80, 19.5, 2.039, 300, 25),
        _gpu("h100", 80, 67, 3.35, 450, 50),
        _gpu("h200", 141, 67, 4.8, 450, 50),
    )
}
_ASSUMED = "a100-80g"


def device_of(text: str) -> Device:
    """Find a device by name; "this" is this machine's, measured; "40g" any GPU with 40 GiB, an A100 in speed.

    Raises:
        UserError: the text is none of them.
    """
    if text in GPUS:
        return GPUS[text]
    if text == "this":
        return measured()
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:g|gb|gib)", text.lower()):
        memory = int(float(match[1]) * GIB)
        if memory:
            return GPUS[_ASSUMED]._replace(name=text, memory=memory, note=f"speeds are assumed: {_ASSUMED}'s")
    raise UserError(f"--gpu: '{text}' is none of {', '.join(GPUS)}, this, or a size such as 40g")


def measured() -> Device:
    """Measure this machine's device: one matrix product in each precision, and one copy."""
    on_gpu = torch.cuda.is_available()
    place = torch.device("cuda" if on_gpu else "cpu")
    size, elements = (8192, 1 << 28) if on_gpu else (1024, 1 << 24)
    flops = {}
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        left, right = (torch.randn(size, size, device=place, dtype=dtype) for _ in range(2))
        flops[precision] = 2 * size**3 / _seconds(partial(torch.matmul, left, right))
    source = torch.zeros(elements, device=place)
    target, small = torch.empty_like(source), torch.zeros(1, device=place)
    bandwidth = 2 * source.nbytes / _seconds(partial(target.copy_, source))
    launch = _seconds(partial(torch.add, small, 1))
    note = f"measured: {flops['fp32'] / 1e9:,.0f} GFLOP/s in fp32, {flops['bf16'] / 1e9:,.0f} in bf16, "
    note += f"{bandwidth / GB:,.1f} GB/s, {launch * 1e6:.1f} us an operation"
    if on_gpu:
        name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(place).total_memory
        known = next((gpu for key, gpu in GPUS.items() if key.split("-")[0].upper() in name), GPUS[_ASSUMED])
        links = {"node_link": known.node_link, "network": known.network}
    else:
        import psutil

        name, memory = CPU, psutil.virtual_memory().total
        links = {"node_link": bandwidth / 2, "network": bandwidth / 2, "host_link": bandwidth}
    # What is measured is attained, so it is written down as the larger figure of which a share is attained.
    stated = {precision: value / MATMUL_SHARE for precision, value in flops.items()}
    return Device(name, memory, stated, bandwidth / BANDWIDTH_SHARE, **links, launch_s=launch, note=note)


def _seconds(call: Callable[[], object], repeats: int = 5) -> float:
    """Time a call: the fastest of some."""

    def once() -> float:
        _wait()
        started = time.perf_counter()
        call()
        _wait()
        return time.perf_counter() - started

    once()
    return min(once() for _ in range(repeats))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
