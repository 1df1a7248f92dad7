"""Measure the memory bank's look-up and update on local gloo ranks, and its size per rank at the paper's scale.

python tools/bench/memory.py [--rows 500000 --size 768 --step-rows 2000 --out docs/benchmarks]

Prints a table and writes memory.json. Each rank looks up its own rows, drawn from the whole bank, and sends sums for
them, as a training step does; on one rank nothing is exchanged. Ranks on one machine share its cores and memory, so the
times show the cost of the exchange there, not on a network.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import socket
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from trelm_ds.config import MemoryConfig
from trelm_ds.knowledge.tables import MemoryBank, TableGroup

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
PAPER_ROWS = 3_100_000
WARM_UP = 3


def bytes_sent(rows: Tensor, bank: MemoryBank, group: TableGroup) -> dict[str, int]:
    """Count the bytes exchanged for a rank's look-up and update of `rows`; it serves others with about as many."""
    elsewhere = int((rows % group.world_size != group.rank).sum())
    row_number, counts = 8, 8
    values = bank.table.width * bank.table.local.element_size()
    sums = (bank.table.width + 2) * 4  # fp32, with both counts
    return {"lookup": elsewhere * (row_number + values + counts), "update": elsewhere * (row_number + sums)}


def time_steps(bank: MemoryBank, group: TableGroup, step_rows: int, repeats: int) -> dict[str, Any]:
    """Measure the seconds of each step's look-up and update, and count the bytes of the last step."""
    draw = torch.Generator().manual_seed(group.rank)
    sums = torch.randn(step_rows, bank.size, generator=draw)
    ones = torch.ones(step_rows, dtype=torch.int64)
    seconds: dict[str, list[float]] = {"lookup": [], "update": []}
    for _ in range(WARM_UP + repeats):
        rows = torch.randperm(bank.table.n_rows, generator=draw)[:step_rows].sort().values
        for name in seconds:
            group.sum(torch.zeros(1))  # synchronize the ranks
            started = time.perf_counter()
            if name == "lookup":
                bank.start_lookup(rows).wait()
            else:
                bank.update(rows, sums, ones, sums, ones)
            seconds[name].append(time.perf_counter() - started)
    return {
        "seconds": {name: values[WARM_UP:] for name, values in seconds.items()},
        "bytes": bytes_sent(rows, bank, group),
    }


def rank_main(rank: int, world_size: int, port: int, arguments: argparse.Namespace, queue: Any) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    group = TableGroup.of_all_ranks(CPU)
    found = {}
    for dtype in ("fp32", "bf16"):
        bank = MemoryBank(arguments.rows, arguments.size, MemoryConfig(dtype=dtype), CPU, group)
        bank.table.local.normal_()
        found[dtype] = time_steps(bank, group, arguments.step_rows, arguments.repeats)
        del bank
    if rank == 0:
        queue.put(found)
    dist.barrier()
    dist.destroy_process_group()


def measure(world_size: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure on `world_size` ranks; return rank 0's times."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    queue = mp.get_context("spawn").SimpleQueue()
    running = mp.spawn(rank_main, (world_size, port, arguments, queue), world_size, join=False)
    while not running.join():
        pass
    return queue.get()  # small enough to fit in the pipe's buffer


def bank_sizes(size: int) -> list[dict[str, Any]]:
    """Compute the bank's bytes at the paper's scale, without allocating it."""
    sizes = []
    for dtype in ("fp32", "bf16"):
        for ranks in (8, 64):
            shards = [
                MemoryBank(PAPER_ROWS, size, MemoryConfig(dtype=dtype), torch.device("meta"), TableGroup(rank, ranks))
                for rank in range(ranks)
            ]
            total, largest = sum(bank.bytes for bank in shards), max(bank.bytes for bank in shards)
            sizes.append({"dtype": dtype, "ranks": ranks, "bytes": total, "largest_rank_bytes": largest})
    return sizes


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summary(runs: dict[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Make one row per dtype, number of ranks and call; ratios are to one rank in the same round."""
    rows = []
    for dtype in ("fp32", "bf16"):
        for call in ("lookup", "update"):
            of_one = [statistics.median(run[dtype]["seconds"][call]) for run in runs[1]]
            for ranks, rounds in runs.items():
                medians = [statistics.median(run[dtype]["seconds"][call]) for run in rounds]
                every = [1000 * value for run in rounds for value in run[dtype]["seconds"][call]]
                ratio = spread([mine / one for mine, one in zip(medians, of_one, strict=True)])
                about = {"dtype": dtype, "call": call, "ranks": ranks, "ms": spread(every), "ratio_to_one_rank": ratio}
                rows.append(about | {"bytes_per_rank": rounds[0][dtype]["bytes"][call]})
    return rows


def table(result: dict[str, Any]) -> str:
    """Format both tables as Markdown, with a line on the origin of the figures."""
    lines = ["| call | ranks | ms a step | times one rank | MB for a rank |", "|---|---|---|---|---|"]
    for row in result["calls"]:
        times = " | ".join(_cell(row[key]) for key in ("ms", "ratio_to_one_rank"))
        lines.append(f"| {row['call']} {row['dtype']} | {row['ranks']} | {times} | {row['bytes_per_rank'] / 1e6:.1f} |")
    lines += ["", f"| {PAPER_ROWS:,} rows | ranks | GB in all | MB of the largest rank |", "|---|---|---|---|"]
    for row in result["sizes"]:
        largest = row["largest_rank_bytes"] / 1e6
        lines.append(f"| {row['dtype']} | {row['ranks']} | {row['bytes'] / 1e9:.2f} | {largest:,.0f} |")
    settings = result["settings"]
    bank = f"{settings['rows']:,} rows x {settings['size']} x 2"
    about = f"{settings['step_rows']:,} rows per rank and step of a bank of {bank}"
    busy = f"load average {result['load_average_before']:.1f} before"
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    rounds = f"median (least - most) of {settings['repeats']} steps in each of {settings['rounds']} rounds"
    return "\n".join([*lines, "", f"{about}; {rounds}; {result['device']}, {busy}; {versions}; {result['date']}."])


def _cell(values: dict[str, float]) -> str:
    return f"{values['median']:.3g} ({values['min']:.3g} - {values['max']:.3g})"


def device() -> str:
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ": unknown")
    return f"{model.split(':')[1].strip()}, {os.cpu_count()} cores, {platform.machine()}, gloo on one machine"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000, help="rows of the bank")
    parser.add_argument("--size", type=int, default=768, help="D")
    parser.add_argument("--step-rows", type=int, default=2000, help="distinct rows per step and rank")
    parser.add_argument("--repeats", type=int, default=20, help="steps per round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; each measures all numbers of ranks in turn")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="numbers of ranks; the first must be 1")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks", help="folder for memory.json")
    arguments = parser.parse_args()
    if arguments.ranks[0] != 1:
        parser.error("--ranks: the first must be 1, which the others are compared with")
    load = os.getloadavg()[0]
    runs: dict[int, list[dict[str, Any]]] = {ranks: [] for ranks in arguments.ranks}
    for _ in range(arguments.rounds):
        for ranks, rounds in runs.items():
            rounds.append(measure(ranks, arguments))
    result = {
        "device": device(),
        "load_average_before": load,
        "versions": {name: version(name) for name in ("torch", "safetensors")},
        "date": datetime.date.today().isoformat(),
        "settings": {name: getattr(arguments, name) for name in ("rows", "size", "step_rows", "repeats", "rounds")},
        "calls": summary(runs),
        "sizes": bank_sizes(arguments.size),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "memory.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
