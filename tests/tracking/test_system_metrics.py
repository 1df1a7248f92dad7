"""How busy nodes are: a real sampler on this one, two ranks that each think they are a node's first."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from tests.distributed import run_distributed_test
from trelm_ds.distributed import connect, disconnect
from trelm_ds.tracking.system_metrics import Gpus, Sampler, SystemMetrics

NAMES = {
    "cpu_percent",
    "memory_used_gb",
    "memory_percent",
    "disk_free_gb",
    "network_received_mb_per_s",
    "network_sent_mb_per_s",
}


def wait_for(sampler: Sampler) -> dict[str, float]:
    """What it has seen, once it has looked."""
    deadline = time.monotonic() + 60
    while not (means := sampler.means()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return means


def test_a_node_is_looked_at(tmp_path: Path) -> None:
    sampler = Sampler(0.05, tmp_path)
    means = wait_for(sampler)
    sampler.close()
    sampler.means()
    assert sampler.means() == {}, "what was seen before the last call is not told again"
    assert means.keys() >= NAMES
    assert 0 <= means["cpu_percent"] <= 100
    assert 0 < means["memory_percent"] < 100
    assert means["memory_used_gb"] > 0.01
    statistics = os.statvfs(tmp_path)
    assert means["disk_free_gb"] == pytest.approx(statistics.f_bavail * statistics.f_frsize / 1e9, rel=0.2)
    assert means["network_received_mb_per_s"] >= 0


def test_a_folder_that_is_not_there_costs_only_its_number(tmp_path: Path) -> None:
    sampler = Sampler(0.05, tmp_path / "nowhere")
    means = wait_for(sampler)
    sampler.close()
    assert "cpu_percent" in means
    assert "disk_free_gb" not in means


def _on_two_nodes(folder: Path, node_of_its_own: bool, every_s: float) -> tuple[list[str], dict[str, float]]:
    if node_of_its_own:
        os.environ["LOCAL_RANK"] = "0"
    ranks = connect()
    metrics = SystemMetrics(every_s, folder, ranks)
    deadline = time.monotonic() + 60
    seen: dict[str, float] = {}
    rounds = 1
    while ranks.max(rounds) and time.monotonic() < deadline:  # until both nodes have been looked at
        seen |= metrics.means()
        nodes = {name.split("/")[1] for name in seen}
        rounds = int(every_s > 0 and len(nodes) < (2 if node_of_its_own else 1))
        time.sleep(0.02)
    metrics.close()
    disconnect()
    return metrics.hosts, seen


@pytest.mark.slow
@pytest.mark.parametrize(("own", "nodes"), [(True, 2), (False, 1)])
def test_every_node_is_one_of_its_own(own: bool, nodes: int, tmp_path: Path) -> None:
    for hosts, seen in run_distributed_test(_on_two_nodes, 2, tmp_path, own, 0.05):
        assert hosts == [socket.gethostname()] * nodes
        for node in range(nodes):
            assert {f"system/node-{node}/{name}" for name in NAMES} <= seen.keys()
        assert {name.split("/")[1] for name in seen} == {f"node-{node}" for node in range(nodes)}


def test_0_looks_at_nothing(tmp_path: Path) -> None:
    ((hosts, seen),) = run_distributed_test(_on_two_nodes, 1, tmp_path, False, 0.0)
    assert (hosts, seen) == ([], {})


NVML = """
class NVMLError(Exception): pass
NVML_TEMPERATURE_GPU = 0
class Seen:
    def __init__(self, **fields): self.__dict__ |= fields
def nvmlInit(): pass
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(number): return number
def nvmlDeviceGetUtilizationRates(gpu): return Seen(gpu=50 + gpu, memory=1)
def nvmlDeviceGetMemoryInfo(gpu): return Seen(used=3_000_000_000, total=80_000_000_000)
def nvmlDeviceGetTemperature(gpu, sensor): return 60
def nvmlDeviceGetPowerUsage(gpu):
    if gpu == 1:
        raise NVMLError("not supported")
    return 250_000
"""


def test_gpus_by_nvml_names_and_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for NVML where there is no GPU: its functions with its units (bytes, milliwatts)."""
    (tmp_path / "pynvml.py").write_text(NVML)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    assert Gpus().read() == {
        "gpu-0/utilization_percent": 50,
        "gpu-0/memory_used_gb": 3,
        "gpu-0/power_w": 250,
        "gpu-0/temperature_c": 60,
        "gpu-1/utilization_percent": 51,
        "gpu-1/memory_used_gb": 3,
        "gpu-1/temperature_c": 60,
    }
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)


@pytest.mark.gpu
def test_real_gpus() -> None:
    pytest.importorskip("pynvml")
    seen = Gpus().read()
    assert 0 <= seen["gpu-0/utilization_percent"] <= 100
    assert seen["gpu-0/memory_used_gb"] > 0
