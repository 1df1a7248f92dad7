"""Sample CPU, memory, disk, network and GPU use on every node, each from a thread of its own."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from trelm_ds.distributed import Ranks


class SystemMetrics:
    """Averages of the samples of all nodes since the last log point. Creating one is collective, and so is `means`.

    Metrics are named `system/node-<n>/...`, with nodes numbered in the order of their ranks.

    Args:
        every_s: seconds between samples; 0 turns sampling off.
        folder: the run folder, whose disk is sampled.

    Attributes:
        hosts: names of the nodes, by number; empty with `every_s` 0.
    """

    def __init__(self, every_s: float, folder: Path, ranks: Ranks) -> None:
        self._enabled, self._ranks = every_s > 0, ranks
        self._sampler = Sampler(every_s, folder) if self._enabled and ranks.local_rank == 0 else None
        own = socket.gethostname() if self._sampler else None
        self.hosts = [host for host in ranks.gather(own) if host is not None] if self._enabled else []

    def means(self) -> dict[str, float]:
        """Return the mean of every metric since the last call, by name; collective.

        A node without a sample since then has none.
        """
        if not self._enabled:
            return {}
        means = self._ranks.gather(self._sampler.means() if self._sampler else None)
        nodes = [node for node in means if node is not None]
        return {f"system/node-{n}/{name}": value for n, node in enumerate(nodes) for name, value in node.items()}

    def close(self) -> None:
        """Stop sampling."""
        if self._sampler:
            self._sampler.close()


class Sampler:
    """Samples this node every `every_s` seconds; docs/tracking.md lists the names and units."""

    def __init__(self, every_s: float, folder: Path) -> None:
        self._every, self._folder = every_s, folder
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, name="system metrics", daemon=True)
        self._thread.start()

    def means(self) -> dict[str, float]:
        """Return the mean of each metric since the last call; empty without a sample since then."""
        with self._lock:
            means = {name: value / self._counts[name] for name, value in self._sums.items()}
            self._sums, self._counts = {}, {}
        return means

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        import psutil

        gpus = Gpus()
        psutil.cpu_percent()  # the first call starts the measurement; each later one covers the time since
        traffic, since = _traffic(psutil), time.monotonic()
        while not self._stop.wait(self._every):
            # A metric that cannot be read (no sensor, a folder that does not exist yet) is left out.
            seen = {"cpu_percent": psutil.cpu_percent()}
            with contextlib.suppress(OSError):
                memory = psutil.virtual_memory()
                seen |= {"memory_used_gb": (memory.total - memory.available) / 1e9}
                seen |= {"memory_percent": memory.percent}
            with contextlib.suppress(OSError):
                seen["disk_free_gb"] = shutil.disk_usage(self._folder).free / 1e9
            now, new = time.monotonic(), _traffic(psutil)
            for name, total in new.items():
                seen[name] = max(0.0, total - traffic.get(name, total)) / 1e6 / (now - since)
            traffic, since = new, now
            seen |= gpus.read()
            with self._lock:
                for name, value in seen.items():
                    self._sums[name] = self._sums.get(name, 0.0) + value
                    self._counts[name] = self._counts.get(name, 0) + 1


def _traffic(psutil: ModuleType) -> dict[str, float]:
    """Sum the bytes received and sent so far over all interfaces except loopback; RDMA traffic is not included."""
    try:
        interfaces = [card for name, card in psutil.net_io_counters(pernic=True).items() if name != "lo"]
    except OSError:
        return {}
    return {
        "network_received_mb_per_s": sum(card.bytes_recv for card in interfaces),
        "network_sent_mb_per_s": sum(card.bytes_sent for card in interfaces),
    }


class Gpus:
    """This node's NVIDIA GPUs in NVML's order; none where pynvml (nvidia-ml-py) or the driver is missing."""

    def __init__(self) -> None:
        self._handles: list[Any] = []
        try:
            import pynvml

            pynvml.nvmlInit()
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
        except Exception:  # no package, no driver, no permission
            return
        self._nvml = pynvml

    def read(self) -> dict[str, float]:
        """Read utilization_percent, memory_used_gb, power_w and temperature_c of each GPU, where it reports them."""
        seen: dict[str, float] = {}
        for number, gpu in enumerate(self._handles):
            for name, look in (
                ("utilization_percent", lambda gpu: self._nvml.nvmlDeviceGetUtilizationRates(gpu).gpu),
                ("memory_used_gb", lambda gpu: self._nvml.nvmlDeviceGetMemoryInfo(gpu).used / 1e9),
                ("power_w", lambda gpu: self._nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3),
                (
                    "temperature_c",
                    lambda gpu: self._nvml.nvmlDeviceGetTemperature(gpu, self._nvml.NVML_TEMPERATURE_GPU),
                ),
            ):
                with contextlib.suppress(self._nvml.NVMLError):
                    seen[f"gpu-{number}/{name}"] = float(look(gpu))
        return seen
