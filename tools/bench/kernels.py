"""Compare our kernels with what torch offers, at BERT-base and BERT-large shapes, and with a prediction.

python tools/bench/kernels.py [--density 0.1] [--tokens 16384] [--rounds 20] [--out docs/benchmarks/kernels.json]

Runs the Triton kernels on a GPU, in bf16 (the optimizer in fp32); without one, their references, in fp32. All ways take
turns in one process. The prediction is max(FLOPs / peak, bytes / bandwidth) with data sheet values: A100 SXM 312
TFLOP/s bf16, 2.0 TB/s; H100 SXM 990 TFLOP/s, 3.35 TB/s.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trelm_kernels import (
    activate,
    activation_backward,
    before_activation,
    bias_corrections,
    lazy_adamw,
    mask_columns,
    path_weight_gradient,
    riemann_scores,
)

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {"base": (768, 3072), "large": (1024, 4096)}  # D, F
CHIPS = {"A100": (312e12, 2.0e12), "H100": (990e12, 3.35e12)}  # bf16 FLOP/s, bytes/s
TOKENS = 16384  # tokens in the micro-batch that costs are predicted for
TARGETS, NODES = 2048, 3  # target positions of a refresh, quadrature nodes
SECTOR = 32  # least bytes a GPU reads at once

Way = Callable[[], Any]
Cost = tuple[float, float]  # FLOPs, bytes


def gathered(density: float, width: int) -> float:
    """Return the share of a row-major matrix that a gather of random columns reads, with `width` columns per sector."""
    return 1 - (1 - density) ** width


def weight_gradient(size: int, neurons: int, o: argparse.Namespace, make: Callable[..., Tensor]) -> dict[str, Any]:
    """Set up the gradient of the keys, dZ^T X; ours for the chosen neurons only, whose columns are gathered already."""
    every, right, rows = make(o.tokens, neurons), make(o.tokens, size), chosen(neurons, o.density, make)
    left = every.index_select(1, rows)
    ways: dict[str, Way] = {
        "ours": lambda: path_weight_gradient(left, right, rows, neurons),
        "dense product": lambda: every.t() @ right,
        "index_select + product": lambda: every.index_select(1, rows).t() @ right,
    }
    whole, columns, written = 2.0 * TOKENS * neurons, 2.0 * TOKENS * neurons * o.density, 2.0 * neurons * size
    read, flops = 2.0 * TOKENS * size, 2.0 * TOKENS * neurons * size
    costs: dict[str, Cost] = {
        "ours": (flops * o.density, columns + read + written * (1 + o.density)),
        "dense product": (flops, whole + read + written),
        "index_select + product": (
            flops * o.density,
            whole * gathered(o.density, SECTOR // 2) + 2 * columns + read + written * o.density,
        ),
    }
    return {"ways": ways, "costs": costs}


def both_weights(size: int, neurons: int, o: argparse.Namespace, make: Callable[..., Tensor]) -> dict[str, Any]:
    """Set up everything from the activation's output gradient to the gradients of keys and values."""
    by_activated, before, hidden = make(o.tokens, neurons), make(o.tokens, neurons), make(o.tokens, size)
    gradient, rows = make(o.tokens, size), chosen(neurons, o.density, make)
    activated = activate(before, "gelu")

    def ours() -> None:
        _, chosen_gradient, chosen_output = activation_backward(by_activated, before, rows, "gelu")
        path_weight_gradient(chosen_gradient, hidden, rows, neurons, True)
        path_weight_gradient(chosen_output, gradient, rows, neurons)

    def dense() -> None:
        by_before = before_activation(by_activated, before, "gelu")
        by_before.t() @ hidden
        by_before.sum(0)
        activated.t() @ gradient

    def indexed() -> None:
        columns = before_activation(by_activated, before, "gelu").index_select(1, rows)
        columns.t() @ hidden
        columns.sum(0)
        activate(before.index_select(1, rows), "gelu").t() @ gradient

    whole, columns, written = 2.0 * TOKENS * neurons, 2.0 * TOKENS * neurons * o.density, 4.0 * neurons * size
    read, flops = 4.0 * TOKENS * size, 4.0 * TOKENS * neurons * size
    touched = whole * gathered(o.density, SECTOR // 2)
    costs: dict[str, Cost] = {
        "ours": (flops * o.density, 3 * whole + 4 * columns + read + written),
        "dense": (flops, 3 * whole + 3 * whole + read + written),
        "index_select": (flops * o.density, 3 * whole + 2 * touched + 4 * columns + read + written * o.density),
    }
    return {"ways": {"ours": ours, "dense": dense, "index_select": indexed}, "costs": costs}


def riemann(size: int, neurons: int, o: argparse.Namespace, make: Callable[..., Tensor]) -> dict[str, Any]:
    """Set up the scores of a layer's neurons from the gradients at all nodes."""
    gradients, values, activations = make(NODES, TARGETS, size), make(neurons, size), make(TARGETS, neurons)
    weights = torch.full((NODES,), 1 / NODES, device=values.device)

    def each_node() -> Tensor:
        by_neuron = gradients @ values.t()
        return (activations * torch.einsum("k,ktf->tf", weights.to(by_neuron.dtype), by_neuron)).clamp(min=0).sum(0)

    product, small = 2.0 * TARGETS * neurons * size, 2.0 * (NODES * TARGETS + neurons) * size
    costs: dict[str, Cost] = {
        "ours": (product, small + 2.0 * TARGETS * neurons),
        "product at each node": (NODES * product, small + 2.0 * TARGETS * neurons * (2 * NODES + 4)),
    }
    ways: dict[str, Way] = {
        "ours": lambda: riemann_scores(gradients, weights, values, activations),
        "product at each node": each_node,
    }
    return {"ways": ways, "costs": costs}


def path_mask(size: int, neurons: int, o: argparse.Namespace, make: Callable[..., Tensor]) -> dict[str, Any]:
    """Set up zeroing half of the chosen rows' coordinates, with the norm."""
    gradient, rows = make(neurons, size), chosen(neurons, o.density, make)
    kept = torch.rand(size, device=gradient.device) < 0.5
    on_path = torch.zeros(neurons, dtype=torch.bool, device=gradient.device).index_fill(0, rows, True)
    whole_mask = on_path[:, None] & kept

    def dense() -> Tensor:
        gradient.mul_(whole_mask)
        return gradient.float().square().sum()

    ways: dict[str, Way] = {"ours": lambda: mask_columns(gradient, rows, kept), "dense mask and norm": dense}
    every = 2.0 * neurons * size
    costs: dict[str, Cost] = {
        "ours": (0.0, 1.5 * every * o.density),
        "dense mask and norm": (0.0, 2.5 * every + 3 * every),
    }
    return {"ways": ways, "costs": costs}


def optimizer(size: int, neurons: int, o: argparse.Namespace, make: Callable[..., Tensor]) -> dict[str, Any]:
    """Set up one optimizer step on a layer's keys and values, in float32."""
    rows = chosen(neurons, o.density, make)
    gradient = torch.zeros(2, neurons, size, device=rows.device)
    gradient[:, rows] = torch.randn(2, len(rows), size, device=rows.device)
    weight = torch.randn_like(gradient)
    state = torch.zeros_like(weight), torch.zeros_like(weight), torch.zeros_like(weight, dtype=torch.int16)
    corrections = bias_corrections(0.9, 0.98, rows.device)
    plain = torch.nn.Parameter(torch.randn_like(gradient))
    plain.grad = torch.randn_like(gradient)
    adamw = torch.optim.AdamW([plain], lr=1e-4, betas=(0.9, 0.98), eps=1e-6, fused=True)
    ways: dict[str, Way] = {
        "ours": lambda: lazy_adamw(weight, gradient, *state, corrections, 1e-4, 0.9, 0.98, 1e-6, 0.01),
        "torch AdamW, fused": adamw.step,
    }
    elements = 2.0 * neurons * size
    costs: dict[str, Cost] = {
        "ours": (0.0, elements * (4 + o.density * (6 * 4 + 4))),
        "torch AdamW, fused": (0.0, elements * 7 * 4),
    }
    return {"ways": ways, "costs": costs}


KERNELS = {
    "weight gradient": weight_gradient,
    "backward to both weights": both_weights,
    "Riemann reduction": riemann,
    "path mask": path_mask,
    "lazy AdamW": optimizer,
}


def chosen(neurons: int, density: float, make: Callable[..., Tensor]) -> Tensor:
    """Draw the neurons on a path at random."""
    rows = torch.randperm(neurons, generator=torch.Generator().manual_seed(0))[: round(density * neurons)]
    return rows.sort()[0].to(make(1).device)


def timed(ways: dict[str, Way], rounds: int, device: torch.device) -> dict[str, float]:
    """Measure the median milliseconds of each way; the ways take turns."""
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 2):
        for name, way in ways.items():
            _synchronize(device)
            begun = time.perf_counter()
            way()
            _synchronize(device)
            if turn > 1:
                seen[name].append(1000 * (time.perf_counter() - begun))
    return {name: statistics.median(times) for name, times in seen.items()}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def predicted(cost: Cost, chip: str) -> float:
    """Predict the milliseconds at a chip's peak."""
    peak, bandwidth = CHIPS[chip]
    return 1000 * max(cost[0] / peak, cost[1] / bandwidth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--tokens", type=int, help="tokens to measure with (default: 16384 on a GPU, else 1024)")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "kernels.json")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options.tokens = options.tokens or (TOKENS if device.type == "cuda" else 1024)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def make(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    rows = []
    for kernel, build in KERNELS.items():
        for shape, (size, neurons) in SHAPES.items():
            torch.manual_seed(0)
            found = build(size, neurons, options, make)
            times = timed(found["ways"], options.rounds, device)
            for name, took in times.items():
                row = {"kernel": kernel, "shape": shape, "way": name, "ms": round(took, 4)}
                row["ours_is_faster"] = round(took / times["ours"], 2)
                for chip in CHIPS:
                    ratio = predicted(found["costs"][name], chip) / predicted(found["costs"]["ours"], chip)
                    row[f"predicted_{chip}"] = round(ratio, 2)
                rows.append(row)
    result = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} cores, no GPU",
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "triton")},
        "date": datetime.date.today().isoformat(),
        "dtype": str(dtype),
        "tokens": options.tokens,
        "density": options.density,
        "rows": rows,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print("| kernel | shape | way | ms | times ours | predicted, A100 | predicted, H100 |\n" + "|---" * 7 + "|")
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")


if __name__ == "__main__":
    main()
