"""Count what tensor parallelism sends: bytes per step and rank, TP 2 x DP 2 against DP 4, under ZeRO 1, 2 and 3.

    python tools/bench/communication.py --data DATASET [--out FILE]

Steps of a small model on four gloo ranks are counted where they call torch.distributed, in fp32 and in bf16. A closed
form (`communication_model.py`) must give the same bytes on every rank, or nothing is printed; then it is evaluated for
the shapes of base and xl in bf16. Times are bytes over bandwidth, without latency and without overlap.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from communication_model import (
    BYTES,
    INFINIBAND,
    LAYOUTS,
    LINKS,
    NVLINK,
    TOKENS,
    ZEROS,
    Layout,
    computed,
    name_of,
    of_step,
)
from compact import with_table
from exchanged import ALL, CONTROL, DATA, TENSOR, Bytes, Exchanged
from objectives import variants

from trelm_ds.config import (
    Config,
    LoaderConfig,
    ModelConfig,
    RoutingConfig,
    TrackingConfig,
    TrainerConfig,
)
from trelm_ds.distributed import Ranks, connect, disconnect
from trelm_ds.model import EncoderConfig
from trelm_ds.planning.traffic import MicroBatch
from trelm_ds.planning.zero import Zero
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run

ROOT = Path(__file__).resolve().parents[2]
PAGE, MARK = ROOT / "docs" / "tensor_parallel.md", "communication-table"
WARM_UP, STEPS = 3, 4  # ZeRO 3 learns the order of modules first; steps differ in tokens and micro-batches
SMALL = 1000  # elements of the largest parameter that ZeRO 3 leaves whole


class Counted(NamedTuple):
    """A step of one rank."""

    handed: Bytes
    micro_batches: list[MicroBatch]


def settings(zero: Zero, tensor: int, precision: str, folder: Path, knowledge: bool = False) -> Config:
    """Make a run's settings; the DeepSpeed file is written into a folder.

    Args:
        knowledge: with everything that is on by default, routing every `STEPS` steps; else plain masked language
            modelling.
    """
    given = json.loads((ROOT / "ds_configs" / f"zero{zero.stage}.json").read_text())
    if zero.stage == 3:
        given["zero_optimization"]["stage3_param_persistence_threshold"] = zero.persistent
        if not zero.keeps:
            given["zero_optimization"] |= {"stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0}
    file = folder / "ds_config.json"
    file.write_text(json.dumps(given))
    config = Config(
        model=ModelConfig(
            hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=160, tensor_parallel=tensor
        ),
        trainer=TrainerConfig(
            ds_config=str(file),
            precision=precision,  # type: ignore[arg-type]
            max_steps=100,
            global_batch_size=32,
            micro_batch_tokens=80,
        ),
        routing=RoutingConfig(refresh_every=STEPS),
        tracking=TrackingConfig(enabled=False),
        loader=LoaderConfig(workers=0),
    )
    config.optimizer.warmup_steps = 1
    if knowledge:
        return config
    return variants(config)["mlm"]


def count(config: Config, data: Path, run: Path, ranks: Ranks) -> tuple[EncoderConfig, list[Counted]]:
    """Count some steps of a run on this rank, and return them with the model's sizes; collective."""
    found, seen = [], []
    with StopSignals() as signals:
        trainer = build_run(config, str(data), run, ranks, signals)
        trainer.engine.train()
        accumulate = trainer.accumulate

        def watched(step: Any, window: Any) -> Any:
            seen.append([MicroBatch(len(one.input_ids), len(one.mlm_positions)) for one in step.micro_batches])
            return accumulate(step, window)

        trainer.accumulate = watched  # type: ignore[method-assign]
        for number in range(WARM_UP + STEPS):
            with Exchanged(trainer.ranks) as exchanged:
                trainer.train_step()
            if number >= WARM_UP:
                found.append(Counted(exchanged.bytes, seen[-1]))
        trainer.held.close()
        sizes: EncoderConfig = trainer.engine.module.config
    return sizes, found


def cases() -> Iterator[tuple[Zero, str, bool]]:
    """List what is counted in each layout: ZeRO, precision, and whether with knowledge."""
    for precision in BYTES:
        for zero in ZEROS:
            yield zero._replace(persistent=SMALL), precision, False
    yield Zero(1), "bf16", True


def count_layout(tensor: int, data: Path, out: Path) -> None:
    """Count all cases of a layout on the ranks that torchrun has started; rank 0 writes them."""
    ranks, found = connect(), []
    for zero, precision, knowledge in cases():
        with tempfile.TemporaryDirectory() as folder:
            config = settings(zero, tensor, precision, Path(folder), knowledge)
            run = Path(ranks.from_first(folder)) / "run"
            sizes, steps = count(config, data, run, ranks)
            found.append({"sizes": asdict(sizes), "steps": ranks.gather(steps)})
            ranks.barrier()  # all are done with rank 0's folder
    if ranks.rank == 0:
        out.write_text(json.dumps(found))
    disconnect()


def launched(layout: Layout, data: Path) -> list[tuple[EncoderConfig, list[list[Counted]]]]:
    """Count a layout in processes of its own: by case, the model's sizes and the steps of every rank.

    Raises:
        SystemExit: they have failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counted.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        script = [__file__, "--data", str(data), "--out", str(out), "--layout", str(layout.tensor)]
        quiet = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
        path = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
        done = subprocess.run([*launcher, str(layout.tensor * layout.data), *script], env=os.environ | quiet | path)
        if done.returncode:
            raise SystemExit(f"{layout.name}: the ranks have failed; see above")
        found = json.loads(out.read_text())
    return [
        (EncoderConfig(**case["sizes"]), [[_read(*step) for step in rank] for rank in case["steps"]]) for case in found
    ]


def _read(handed: Bytes, micro_batches: list[list[int]]) -> Counted:
    return Counted(handed, [MicroBatch(*one) for one in micro_batches])


def check(counted: Counted, sizes: EncoderConfig, layout: Layout, zero: Zero, number: int) -> None:
    """Compare a step's bytes with the closed form.

    Raises:
        SystemExit: they differ, by a single byte or group.
    """
    handed = {group: kinds for group, kinds in counted.handed.items() if group != CONTROL}
    expected = of_step(sizes, layout, zero, number, counted.micro_batches)
    if handed != expected:
        step = f"{layout.name}, {name_of(zero)}, {number} bytes a number, {counted.micro_batches}"
        raise SystemExit(f"{step}: counted {handed}, the closed form says {expected}; nothing is computed with it")


def mean(steps: list[Counted]) -> Bytes:
    """Average the bytes of some steps, rounded."""
    found: Bytes = {}
    for handed, _ in steps:
        for group, kinds in handed.items():
            for kind, size in kinds.items():
                into = found.setdefault(group, {})
                into[kind] = into.get(kind, 0) + size
    return {group: {kind: round(size / len(steps)) for kind, size in kinds.items()} for group, kinds in found.items()}


def counted_and_checked(data: Path) -> list[dict[str, Any]]:
    """Count all layouts and check every step of every rank; return a row for each case, with rank 0's means.

    Raises:
        SystemExit: a step's bytes are not those of the closed form.
    """
    rows = []
    for layout in LAYOUTS:
        for (zero, precision, knowledge), (sizes, ranks) in zip(cases(), launched(layout, data), strict=True):
            for step in [] if knowledge else [step for rank in ranks for step in rank]:
                check(step, sizes, layout, zero, BYTES[precision])
            first = ranks[0]
            row = {"layout": layout.name, "zero": name_of(zero), "precision": precision, "knowledge": knowledge}
            row["tokens"] = sum(batch.tokens for step in first for batch in step.micro_batches) / len(first)
            row["micro_batches"] = sum(len(step.micro_batches) for step in first) / len(first)
            rows.append(row | {"handed": mean(first)})
    return rows


def table(result: dict[str, Any]) -> str:
    """Format the result as Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    speeds = f"NVLink has {NVLINK / 1e9:.0f} GB/s per GPU, InfiniBand {INFINIBAND / 1e9:.0f}"
    parts = (
        "A collective counts with the bytes of its larger side, for every rank in it: what is reduced, what an "
        "all-gather returns, what a reduce-scatter is given. In a ring of n ranks each sends (n - 1) / n of them, in "
        "an all-reduce twice that. Control is what the group for small messages carries, and single numbers.",
        f"**Counted**: bytes that rank 0 of 4 hands over in a step of a small model in bf16, mean of {STEPS} steps. "
        "Rows without knowledge equal the closed form, to the byte, in every step of every rank, in fp32 too.",
        _counted_table(result["counted"]),
        "**Computed** by the closed form, bf16: MB of a step of one micro-batch. Between forward and backward pass "
        "ZeRO 3 keeps weights, or it releases them and gathers them again: `stage3_max_reuse_distance`, by default 1e9 "
        "parameters, keeps all of base and some of xl.",
        _shapes_table(result["sizes"]),
        "**Arithmetic** on these, nothing measured: up to how many tokens per GPU TP 2 x DP 2 exchanges in less time "
        "than DP 4, and ms of exchange, DP 4 / TP 2 x DP 2, "
        f"at {TOKENS:,} tokens per GPU. Tokens are those of a step under ZeRO 1, of a micro-batch under 2 and 3; the "
        f"ranks of a pair take their tokens together. {speeds}; a ring is as fast as its slowest link; no latency, no "
        "overlap. Where all links are alike, TP also sends fewer bytes up to as many tokens.",
        _crossing_table(result["sizes"]),
        _reading(result["sizes"]),
        f"CPU ranks over gloo, no GPU; {versions}; {result['date']}.",
    )
    return "\n\n".join(parts)


def _rows(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def _counted_table(counted: list[dict[str, Any]]) -> str:
    columns = [(TENSOR, "all-reduce"), (DATA, "all-reduce"), (DATA, "all-gather"), (DATA, "reduce-scatter")]
    columns += [(TENSOR, "all-gather"), (DATA, "all-to-all"), (ALL, "broadcast")]
    names = [f"{group} {kind}" for group, kind in columns]
    rows = []
    for row in counted:
        if row["precision"] == "bf16":
            handed = row["handed"]
            name = f"{row['layout']}, {row['zero']}" + (", with knowledge and routing" if row["knowledge"] else "")
            cells = [f"{handed.get(group, {}).get(kind, 0):,}" for group, kind in columns]
            control = f"{sum(handed[CONTROL].values()):,}"
            rows.append([name, f"{row['tokens']:.0f}", f"{row['micro_batches']:.2f}", *cells, control])
    return _rows(["layout, ZeRO", "tokens", "micro-batches", *names, "control"], rows)


def _shapes_table(sizes: dict[str, Any]) -> str:
    kinds = ("all-reduce", "all-gather", "reduce-scatter")
    rows = []
    for name, shape in sizes.items():
        for zero, row in shape["zero"].items():
            for layout in LAYOUTS:
                one = row[layout.name]
                handed = [f"{one['handed'].get(kind, 0) / 1e6:,.0f}" for kind in kinds]
                per_token = f"{shape['tensor_bytes_per_token'] / 1e3:,.0f}" if layout.tensor > 1 else "0"
                start = [f"{name}, {zero}", layout.name, f"{one['parameters'] / 1e6:,.0f}"]
                rows.append([*start, *handed, f"{one['sent'] / 1e6:,.0f}", per_token])
    header = ["model, ZeRO", "layout", "parameters per rank, millions", *(f"{DATA} {kind}" for kind in kinds)]
    return _rows([*header, "of these sent in rings", f"{TENSOR} all-reduce: kB per token"], rows)


def _crossing_table(sizes: dict[str, Any]) -> str:
    rows = []
    for name, shape in sizes.items():
        for zero, row in shape["zero"].items():
            cells = []
            for link in LINKS:
                times = " / ".join(f"{row[layout.name]['ms'][link]:,.1f}" for layout in LAYOUTS)
                cells += [f"{row['tokens_up_to'][link]:,}", times]
            rows.append([f"{name}, {zero}", *cells])
    return _rows(["model, ZeRO", *(f"{link}: {what}" for link in LINKS for what in ("tokens", "ms"))], rows)


def _reading(sizes: dict[str, Any]) -> str:
    base, xl = (sizes[name]["zero"]["ZeRO 1"]["tokens_up_to"] for name in ("base", "xl"))
    alike, apart = LINKS
    return (
        f"So tensor parallelism saves traffic in small steps only: under ZeRO 1 up to {base[alike]:,} tokens per GPU "
        f"for base and {xl[alike]:,} for xl, where base's recipe packs 32,768 into a micro-batch. Slow links between "
        f"fast pairs move the limits to {base[apart]:,} and {xl[apart]:,}; but a backward pass can hide much of the "
        "data-parallel exchange and little of the tensor-parallel one, for whose sums every layer waits, so real "
        "limits are likely lower. Its use is memory, for a model that ZeRO alone does not fit, rather than traffic."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, help="dataset of `trelm prepare`, of short sequences")
    parser.add_argument("--out", type=Path, help="default: docs/benchmarks, and the table in docs/tensor_parallel.md")
    parser.add_argument("--layout", type=int, help=argparse.SUPPRESS)  # given to the ranks that this script starts
    options = parser.parse_args()
    if options.layout is not None:
        return count_layout(options.layout, options.data, options.out)
    result = {
        "date": datetime.date.today().isoformat(),
        "versions": {name: version(name) for name in ("torch", "deepspeed", "megatron-core")},
        "counted": counted_and_checked(options.data),
        "sizes": {name: computed(name) for name in ("base", "xl")},
    }
    out = options.out or ROOT / "docs" / "benchmarks" / "communication.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    if options.out is None:
        PAGE.write_text(with_table(PAGE.read_text(), table(result), MARK, PAGE))


if __name__ == "__main__":
    main()
