"""Compile every Triton kernel ahead of time, without a GPU, for each architecture, and print what it asks of one.

python tools/bench/kernels_aot.py [--sm 75 86] [--kernels "weight gradient"] [--out docs/benchmarks/kernels_aot.json]
    [--markdown docs/routing.md]

A kernel that takes more shared memory than a GPU gives to one block cannot be launched there. Exit code 1 if there is
one, or if a kernel spills more registers than is known (`Chip.may_spill`) in a precision that training uses: fp16 is
none. bf16 is left out for sm_75, which has none: `trelm pretrain` refuses it there. With --markdown the table between
the marks of that file is replaced.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported: an interpreted function cannot be compiled

import triton
from trelm_kernels import MAX_STEPS, activation, adamw, path_mask, riemann, weight_gradient
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

MARKS = "<!-- kernels-aot -->\n", "<!-- /kernels-aot -->\n"
FLOATS = ("bf16", "fp16", "fp32")


class Chip(NamedTuple):
    """GPUs of an architecture.

    Attributes:
        shared_memory: most bytes of a block (CUDA C++ Programming Guide, compute capabilities).
        may_spill: bytes of registers per thread that a kernel may keep in memory there.
    """

    name: str
    shared_memory: int
    may_spill: int = 0


CHIPS = {
    75: Chip("T4, RTX 20", 64 << 10, may_spill=32),
    80: Chip("A100", 163 << 10),
    86: Chip("A40, RTX 30", 99 << 10, may_spill=32),
    89: Chip("L4, L40, RTX 40", 99 << 10, may_spill=32),
    90: Chip("H100, H200", 227 << 10),
    100: Chip("B200", 227 << 10),
    120: Chip("RTX 50", 99 << 10),
}


class Variant(NamedTuple):
    """One compilation of a kernel: argument types and constants."""

    kernel: Any
    name: str
    dtype: str
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
            kernel, name = activation.backward_and_compact, f"activation backward, {kind}"
            yield Variant(kernel, name, dtype, types, {"ACTIVATION": kind, **blocks})
        blocks = {"BLOCK_S": weight_gradient.BLOCK_S, "BLOCK_D": weight_gradient.BLOCK_D}
        blocks |= {"BLOCK_T": weight_gradient.BLOCK_T, "WIDEN": False}
        for with_bias in (True, False):
            kernel, name = weight_gradient.partial_products, f"weight gradient{', bias' * with_bias}"
            yield Variant(kernel, name, dtype, types, {"WITH_BIAS": with_bias, **blocks}, weight_gradient.WARPS)
        constants = {"WITH_BIAS": True, "BLOCK_D": weight_gradient.BLOCK_D}
        yield Variant(weight_gradient.sum_splits, "weight gradient, sum", dtype, types, constants, warps=1)
        constants = {"TARGETS_PER_SPLIT": riemann.SPLIT, "BLOCK_T": riemann.BLOCK_T, "BLOCK_F": riemann.BLOCK_F}
        constants |= {"BLOCK_D": riemann.BLOCK_D}
        yield Variant(riemann.partial_scores, "riemann", dtype, types, constants)
        constants = {"BLOCK_S": path_mask.BLOCK_S, "BLOCK_D": path_mask.BLOCK_D}
        yield Variant(path_mask.mask_rows, "path mask", dtype, types, constants)
    moments = dict.fromkeys(("weight", "gradient", "exp_avg", "exp_avg_sq", "corrections"), "*fp32")
    numbers = dict.fromkeys(("lr", "decay", "beta1", "beta2", "eps"), "fp32")
    types = {**moments, **numbers, "updates": "*i16", "size": "i64"}
    yield Variant(adamw.update_blocks, "lazy AdamW", "fp32", types, {"LAST": MAX_STEPS, "BLOCK": adamw.BLOCK})


def resources(variant: Variant, architecture: int) -> dict[str, int]:
    """Compile a variant and return registers per thread, bytes of shared memory per block, and bytes spilled."""
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
    said = io.StringIO()
    knobs.compilation.always_compile = knobs.nvidia.dump_ptxas_log = True  # the assembler counts registers
    with contextlib.redirect_stdout(said):
        compiled = compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    counts = re.search(r"Used (\d+) registers", said.getvalue())
    assert counts is not None
    return {
        "registers": int(counts[1]),
        "shared_memory": compiled.metadata.shared,
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", said.getvalue()))),
    }


def measured(number: int, architecture: int) -> dict[str, Any]:
    """Compile the variant of that number and say what it asks for, beside what the GPU has."""
    variant = [*variants()][number]
    found = resources(variant, architecture)
    return {"kernel": variant.name, "dtype": variant.dtype, "sm": architecture, **found} | {
        "shared_memory_limit": CHIPS[architecture].shared_memory
    }


def problem(row: dict[str, Any]) -> str | None:
    """Say what is wrong with a kernel on a GPU, if anything."""
    name = f"{row['kernel']}, {row['dtype']}, on sm_{row['sm']}"
    if row["shared_memory"] > row["shared_memory_limit"]:
        return f"{name}: takes {row['shared_memory']:,} bytes of shared memory of {row['shared_memory_limit']:,}"
    if row["spilled"] > CHIPS[row["sm"]].may_spill and row["dtype"] != "fp16":  # in which nothing is trained
        return f"{name}: spills {row['spilled']:,} bytes of registers"
    return None


def table(rows: list[dict[str, Any]]) -> str:
    """Write a line for each kernel: registers and KiB of shared memory on every GPU; the worst of its precisions."""
    chips = sorted({row["sm"] for row in rows})
    lines = ["| registers, KiB of shared memory | " + " | ".join(f"sm_{sm}: {CHIPS[sm].name}" for sm in chips) + " |"]
    lines += ["|---" * (len(chips) + 1) + "|"]
    lines += ["| a block's limit | " + " | ".join(f"255, {CHIPS[sm].shared_memory >> 10}" for sm in chips) + " |"]
    for name in dict.fromkeys(row["kernel"] for row in rows):
        cells = []
        for sm in chips:
            own = [row for row in rows if (row["kernel"], row["sm"]) == (name, sm)]
            registers, shared = (max(row[key] for row in own) for key in ("registers", "shared_memory"))
            spills = "".join(f"; {row['dtype']} spills {row['spilled']}" for row in own if row["spilled"])
            cells.append(f"{registers}, {shared / 1024:.3g}{spills}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sm", type=int, nargs="+", choices=CHIPS, default=[*CHIPS])
    parser.add_argument("--kernels", default="", help="regular expression: only those whose 'name, dtype' has it")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path)
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args()


def main() -> int:
    o = options()
    work = [
        (number, sm)
        for number, variant in enumerate(variants())
        for sm in o.sm
        if re.search(o.kernels, f"{variant.name}, {variant.dtype}") and not (sm < 80 and variant.dtype == "bf16")
    ]
    with ProcessPoolExecutor(o.workers, mp_context=get_context("fork")) as pool:
        rows = [*pool.map(measured, *zip(*work, strict=True))]
    print(f"triton {triton.__version__}\n{table(rows)}", end="")
    if o.out:
        head = {"date": datetime.date.today().isoformat(), "triton": triton.__version__}
        o.out.write_text(json.dumps(head | {"kernels": rows}, indent=1) + "\n")
    if o.markdown:
        before, rest = o.markdown.read_text().split(MARKS[0])
        o.markdown.write_text(before + MARKS[0] + table(rows) + MARKS[1] + rest.split(MARKS[1])[1])
    problems = [found for row in rows if (found := problem(row))]
    print("".join(f"{found}\n" for found in problems), file=sys.stderr, end="")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
