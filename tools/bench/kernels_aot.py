"""Compile every Triton kernel for A100 (sm_80) and H100 (sm_90), without a GPU, and print the resources of each.

python tools/compile_kernels.py     (exit code 1 if a kernel spills registers or needs too much shared memory)
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported: an interpreted function cannot be compiled

import triton
from trelm_kernels import MAX_STEPS, activation, adamw, path_mask, riemann, weight_gradient
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

SHARED_MEMORY = {80: 163 << 10, 90: 227 << 10}  # most bytes of one program, by architecture
FLOATS = ("bf16", "fp16", "fp32")


class Variant(NamedTuple):
    """One compilation of a kernel: argument types and constants."""

    kernel: Any
    name: str
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 3


def variants() -> Iterator[Variant]:
    """Yield every kernel in every precision that training uses."""
    sizes = dict.fromkeys(
        ("tokens", "size", "chosen", "left_stride", "right_stride", "tokens_per_split", "splits"), "i32"
    )
    sizes |= dict.fromkeys(("targets", "neurons", "nodes", "gradient_stride", "inputs_stride", "chosen_stride"), "i32")
    for dtype in FLOATS:
        common = sizes | {"rows": "*i64", "partial": "*fp32", "partial_weight": "*fp32", "partial_bias": "*fp32"}
        data = dict.fromkeys(("left", "right", "weight", "bias", "gradient", "gradients", "values", "activations"))
        data |= dict.fromkeys(("inputs", "input_gradient", "chosen_gradient", "chosen_output"))
        types = common | dict.fromkeys(data, f"*{dtype}") | {"weights": "*fp32", "kept": "*u8", "slots": "*i32"}
        for kind in activation.ACTIVATIONS:
            blocks = {"BLOCK_T": activation.BLOCK_T, "BLOCK_F": activation.BLOCK_F}
            kernel, name = activation.backward_and_compact, f"activation backward, {kind}, {dtype}"
            yield Variant(kernel, name, types, {"ACTIVATION": kind, **blocks})
        blocks = {"BLOCK_S": weight_gradient.BLOCK_S, "BLOCK_D": weight_gradient.BLOCK_D}
        blocks |= {"BLOCK_T": weight_gradient.BLOCK_T, "WIDEN": False}
        for with_bias in (True, False):
            kernel, name = weight_gradient.partial_products, f"weight gradient, {'bias, ' * with_bias}{dtype}"
            yield Variant(kernel, name, types, {"WITH_BIAS": with_bias, **blocks}, weight_gradient.WARPS)
        constants = {"WITH_BIAS": True, "BLOCK_D": weight_gradient.BLOCK_D}
        yield Variant(weight_gradient.sum_splits, f"weight gradient, sum, {dtype}", types, constants, warps=1)
        constants = {"TARGETS_PER_SPLIT": riemann.SPLIT, "BLOCK_T": riemann.BLOCK_T, "BLOCK_F": riemann.BLOCK_F}
        constants |= {"BLOCK_D": riemann.BLOCK_D}
        yield Variant(riemann.partial_scores, f"riemann, {dtype}", types, constants)
        constants = {"BLOCK_S": path_mask.BLOCK_S, "BLOCK_D": path_mask.BLOCK_D}
        yield Variant(path_mask.mask_rows, f"path mask, {dtype}", types, constants)
    moments = dict.fromkeys(("weight", "gradient", "exp_avg", "exp_avg_sq", "corrections"), "*fp32")
    numbers = dict.fromkeys(("lr", "decay", "beta1", "beta2", "eps"), "fp32")
    types = {**moments, **numbers, "updates": "*i16", "size": "i64"}
    yield Variant(adamw.update_blocks, "lazy AdamW, fp32", types, {"LAST": MAX_STEPS, "BLOCK": adamw.BLOCK})


def resources(variant: Variant, architecture: int) -> dict[str, int]:
    """Compile a variant and return registers per thread, bytes of shared memory per program, and bytes spilled."""
    names = variant.kernel.arg_names
    signature = {name: "constexpr" if name in variant.constants else variant.types[name] for name in names}
    # Declare what the just-in-time compiler would detect: torch's allocations and rows of usual widths are aligned.
    aligned = [i for i, name in enumerate(names) if signature[name][0] == "*" or name.endswith("_stride")]
    aligned += [i for i, name in enumerate(names) if name in ("size", "neurons")]
    source = ASTSource(
        variant.kernel,
        signature,
        {(names.index(name),): value for name, value in variant.constants.items()},
        {(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    options = {"num_warps": variant.warps, "num_stages": variant.stages}
    compiled = compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(compiled.asm["ptx"])
        file.flush()
        suffix = "a" if architecture == 90 else ""
        command = [assembler(), "-v", f"--gpu-name=sm_{architecture}{suffix}", file.name, "-o", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", said)))
    return {
        "registers": int(re.search(r"Used (\d+) registers", said)[1]),
        "shared memory, bytes": compiled.metadata.shared,
        "spilled, bytes": spilled,
    }


def assembler() -> str:
    """Return the path of NVIDIA's assembler, which Triton ships."""
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas")


def main() -> int:
    bad = []
    print(f"triton {triton.__version__}\n| kernel | sm | registers | shared memory, bytes | spilled, bytes |")
    print("|---" * 5 + "|")
    for variant in variants():
        for architecture, most in SHARED_MEMORY.items():
            found = resources(variant, architecture)
            print(f"| {variant.name} | {architecture} | " + " | ".join(map(str, found.values())) + " |", flush=True)
            if found["spilled, bytes"] or found["shared memory, bytes"] > most:
                bad.append(f"{variant.name} on sm_{architecture}")
    if bad:
        print("spills registers or takes too much shared memory: " + "; ".join(bad), file=sys.stderr)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
