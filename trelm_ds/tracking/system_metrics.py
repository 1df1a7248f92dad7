"""How busy the nodes are: CPU, memory, disk, network and GPUs, looked at on a thread of each node."""

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
    """Means of what was seen since the last log point, of every node. Collective, as its `means`.

    A node's numbers are named `system/node-<n>/...`; nodes are numbered by the ranks that run there.

    Args:
        every_s: seconds between two looks; 0 looks at nothing.
        folder: the run folder, whose disk is watched.
        ranks: of the run.

    Attributes:
        hosts: names of the nodes, by number; empty with `every_s` 0.
    """

    def __init__(self, every_s: float, folder: Path, ranks: Ranks) -> None:
        self._on, self._ranks = every_s > 0, ranks
        self._sampler = Sampler(every_s, folder) if self._on and ranks.local_rank == 0 else None
        own = socket.gethostname() if self._sampler else None
        self.hosts = [host for host in ranks.gather(own) if host is not None] if self._on else []

    def means(self) -> dict[str, float]:
        """By name; empty for a node that was not looked at since the last call. Collective."""
        if not self._on:
            return {}
        seen = self._ranks.gather(self._sampler.means() if self._sampler else None)
        nodes = [node for node in seen if node is not None]
        return {f"system/node-{n}/{name}": value for n, node in enumerate(nodes) for name, value in node.items()}

    def close(self) -> None:
        """Ends the thread."""
        if self._sampler:
            self._sampler.close()


class Sampler:
    """Looks at this node every `every_s` seconds; see docs/tracking.md for the names and units."""

    def __init__(self, every_s: float, folder: Path) -> None:
        self._every, self._folder = every_s, folder
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._thread = threading.Thread(target=self._work, name="system metrics", daemon=True)
        self._thread.start()

    def means(self) -> dict[str, float]:
        """Of each number since the last call; empty when nothing was looked at since."""
        with self._lock:
            means = {name: value / self._counts[name] for name, value in self._sums.items()}
            self._sums, self._counts = {}, {}
        return means

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)

    def _work(self) -> None:
        import psutil

        gpus = Gpus()
        psutil.cpu_percent()  # it measures from call to call
        traffic, since = _traffic(psutil), time.monotonic()
        while not self._stop.wait(self._every):
            # A number that cannot be had (a sensor, a folder that is not there yet) is left out.
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
    """Bytes received and sent so far, by all interfaces but the loopback; RDMA is not among them."""
    try:
        interfaces = [card for name, card in psutil.net_io_counters(pernic=True).items() if name != "lo"]
    except OSError:
        return {}
    return {
        "network_received_mb_per_s": sum(card.bytes_recv for card in interfaces),
        "network_sent_mb_per_s": sum(card.bytes_sent for card in interfaces),
    }


class Gpus:
    """This node's NVIDIA GPUs, by NVML's numbers; none where pynvml (nvidia-ml-py) or the driver is missing."""

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
        """Of each GPU: utilization_percent, memory_used_gb, power_w, temperature_c, as far as it tells them."""
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
