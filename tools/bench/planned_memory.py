"""Measure what training holds, and compare it with what the planner says.

    python tools/bench/planned_memory.py --data DATASET [--ranks 1 2] [--sizes tiny narrow deep] [--out FILE]

Real runs on the CPU, of every ZeRO stage, with and without activation checkpointing, dense and routed. In a step:
model states are the storages of all tensors that came into being since the run was built, after the backward pass;
saved activations are counted where autograd saves them; the peak is that of the CPU allocator, in torch's profile. The
planner is given the micro-batches that were trained on, and this CPU's attention. It may be stopped at any time and
goes on.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from compact import with_table
from objectives import variants
from trelm_kernels.adamw import bias_corrections

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
from trelm_ds.planning.memory import Memory, memory_of
from trelm_ds.planning.model import traced
from trelm_ds.planning.parameters import Parameters
from trelm_ds.planning.samples import Sample, open_for_planning
from trelm_ds.planning.trace import Trace
from trelm_ds.planning.zero import Zero
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run
from trelm_ds.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
PAGE, MARK = ROOT / "docs" / "planning.md", "memory-table"
SIZES = {
    "tiny": ModelConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256),
    "narrow": ModelConfig(hidden_size=128, num_hidden_layers=6, num_attention_heads=4, intermediate_size=512),
    "wide": ModelConfig(hidden_size=384, num_hidden_layers=3, num_attention_heads=6, intermediate_size=1536),
}
BUCKET = 100_000  # elements; the shipped 50 million would hide everything else of models this small
CASE = ("size", "zero", "checkpointing", "routed", "precision")
WARM_UP = 4  # ZeRO 3 learns the order of modules first, after a routed run's attribution


def settings(size: str, stage: int, checkpointing: bool, routed: bool, precision: str, folder: Path) -> Config:
    """Make a run's settings; the DeepSpeed file is written into a folder."""
    given = json.loads((ROOT / "ds_configs" / f"zero{stage}.json").read_text())
    given["zero_optimization"] |= {"reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
    if stage == 3:
        given["zero_optimization"]["stage3_param_persistence_threshold"] = 1000
    file = folder / "ds_config.json"
    file.write_text(json.dumps(given))
    config = Config(
        model=replace(SIZES[size], activation_checkpointing=checkpointing, hidden_dropout_prob=0.1),
        trainer=TrainerConfig(
            ds_config=str(file),
            precision=precision,  # type: ignore[arg-type]
            max_steps=100,
            global_batch_size=64,
            micro_batch_tokens=512,
        ),
        routing=RoutingConfig(refresh_every=100, sample_fraction=1.0),
        tracking=TrackingConfig(enabled=False),
        loader=LoaderConfig(workers=0),
    )
    config.optimizer.warmup_steps = 1
    if routed:
        return config
    return variants(config)["mlm"]


def storages() -> dict[int, int]:
    """List the storages of all tensors that Python knows of, with their bytes."""
    gc.collect()
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated attributes of modules, which looking at them would warn of
        for one in gc.get_objects():
            if isinstance(one, torch.Tensor) and type(one).__name__ != "FakeTensor" and one.device.type == "cpu":
                storage = one.untyped_storage()
                found[storage._cdata] = storage.nbytes()
    return found


def allocator_peak(profile: Any) -> int:
    """Return the most bytes above those at its start that the allocator had given out during a profile."""
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate((event.nbytes() for event in events), initial=0))


class Watched:
    """Measures the passes of a step.

    Attributes:
        counted: the micro-batches of which saved tensors were counted, with what was looked up for them.
        samples: those whose passes were profiled.
        states: bytes of all tensors that came into being since `before`, after the backward pass.
        saved: bytes that autograd has saved of all micro-batches.
        peak: the most bytes at a time, while the passes went on.
    """

    def __init__(self, trainer: Trainer, before: set[int]) -> None:
        self.trainer, self._before = trainer, before
        self.counted: list[Any] = []
        self.samples: list[Any] = []
        self.states, self.saved, self.peak = 0, 0, 0

    def steps(self) -> None:
        """Take a step in which saved tensors are counted, and one that is profiled."""
        accumulate = self.trainer.accumulate

        def watched(step: Any, window: Any) -> Any:
            self.samples = [(batch, self._tables()) for batch in step.micro_batches]
            own = self._before | {key for one in self.counted + self.samples for key in _storages_of(*one)}
            at_start = sum(size for key, size in storages().items() if key not in own)
            activities = [torch.profiler.ProfilerActivity.CPU]
            with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
                result = accumulate(step, window)
            self.peak = at_start + allocator_peak(profile)
            self.states = sum(size for key, size in storages().items() if key not in own)
            return result

        def counting(step: Any, window: Any) -> Any:
            self.counted = [(batch, self._tables()) for batch in step.micro_batches]
            return self._counting(accumulate, step, window)

        self.trainer.accumulate = counting  # type: ignore[method-assign]
        self.trainer.train_step()
        self.trainer.accumulate = watched  # type: ignore[method-assign]
        self.trainer.train_step()
        self.trainer.accumulate = accumulate  # type: ignore[method-assign]

    def _counting(self, accumulate: Any, step: Any, window: Any) -> Any:
        module = self.trainer.engine.module
        forward = module.forward

        def counting(*inputs: Any, **more: Any) -> Any:
            # Kept alive: ZeRO 3 drops storages of weights, whose places in memory others would get.
            given = [one.detach() for one in (*module.parameters(), *module.buffers())]
            known = {one.untyped_storage()._cdata for one in given} | _storages_of(inputs, more)
            found, held = dict[int, int](), []

            def keep(tensor: torch.Tensor) -> torch.Tensor:
                storage = tensor.untyped_storage()
                # Under ZeRO 3 a weight has its storage only while its module runs.
                weights = {one.untyped_storage()._cdata for one in module.parameters()}
                if storage._cdata not in known | weights:
                    found[storage._cdata] = storage.nbytes()
                    held.append(tensor)  # so that no other storage gets its place in memory
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                output = forward(*inputs, **more)
            self.saved += sum(found.values())
            return output

        module.forward = counting
        try:
            return accumulate(step, window)
        finally:
            module.forward = forward

    def _tables(self) -> Any:
        inputs: dict[str, Any] = {}
        for part in self.trainer.components:
            inputs |= part.model_inputs()
        return inputs.get("tables")


def measure(config: Config, data: str, ranks: Ranks) -> dict[str, Any]:
    """Measure one case on this rank, and plan it."""
    with tempfile.TemporaryDirectory() as folder, StopSignals() as signals:
        bias_corrections.cache_clear()  # of an earlier case
        before = set(storages())
        trainer = build_run(config, data, Path(folder) / "run", ranks, signals)
        trainer.engine.train()
        for _ in range(WARM_UP):
            trainer.train_step()
        watched = Watched(trainer, before)
        watched.steps()
        zero = Zero.of(trainer.engine.config)
        tables = sum(
            table.bytes
            for part in trainer.components
            for table in (getattr(part, "vectors", None), getattr(part, "bank", None))
            if table is not None
        )
        estimated = deepspeed_estimate(trainer.engine.module, zero.stage, ranks.world_size)
        trainer.held.close()
        trainer.engine.destroy()
    planned, saved = plan(config, zero, data, watched, ranks, tables)
    watched.states, watched.peak = (max(ranks.gather(value)) for value in (watched.states, watched.peak))
    found = {
        "states": watched.states, "states_planned": planned.states + planned.tables,
        "saved": watched.saved, "saved_planned": sum(saved),
        "peak": watched.peak, "peak_planned": planned.passes,
        "states_deepspeed": estimated,
    }  # fmt: skip
    return found | {
        f"{name}_error": round(error(found[f"{name}_planned"], found[name]), 3) for name in ("states", "saved", "peak")
    }


def _storages_of(batch: Any, tables: Any) -> set[int]:
    """List the storages of a micro-batch and of what was looked up for it."""
    return {
        leaf.untyped_storage()._cdata
        for leaf in torch.utils._pytree.tree_leaves((batch, tables))
        if isinstance(leaf, torch.Tensor)
    }


def plan(
    config: Config, zero: Zero, data: str, watched: Watched, ranks: Ranks, tables: int
) -> tuple[Memory, list[int]]:
    """Plan the same case with the micro-batches that were trained on; return also what each that was counted saves."""
    opened = open_for_planning(config, data)
    info = opened.prepared.info
    sizes = EncoderConfig.from_settings(config.model, info.vocab_size, info.pad)

    def traces(samples: list[Any]) -> list[tuple[Trace, Parameters]]:
        given = [Sample(batch, looked_up, len(batch.input_ids), 0.0, 0.0) for batch, looked_up in samples]
        return [traced(config, sizes, opened, one, on_gpu=False) for one in given]

    number = 2 if config.trainer.precision == "bf16" else 4
    # Both parts of the step's memories as they arrived, and what Eq. 4 and 6 learn of them, until its end.
    tables += (
        16
        * sizes.hidden_size
        * max((len(looked_up.memories) for _, looked_up in watched.samples if looked_up), default=0)
    )
    several = len(watched.samples) > 1
    each = [
        memory_of(parameters, zero, ranks.world_size, number, trace, several, tables, at_once=False)
        for trace, parameters in traces(watched.samples)
    ]
    return max(each, key=lambda one: one.peak), [trace.saved for trace, _ in traces(watched.counted)]


def error(planned: float, measured: float) -> float:
    """Return how far a plan is off, in percent of what was measured."""
    return 100 * (planned - measured) / measured


def cases(options: argparse.Namespace) -> list[tuple[str, int, bool, bool, str]]:
    """List the cases: size, stage, activation checkpointing, routed, precision."""
    return list(itertools.product(options.sizes, options.stages, (False, True), (False, True), options.precisions))


def on_ranks(options: argparse.Namespace) -> None:
    """Measure all cases on the ranks that are there; rank 0 writes them as lines of JSON."""
    ranks = connect()
    done = [] if not options.lines.is_file() else list(map(json.loads, options.lines.read_text().splitlines()))
    for values in cases(options):
        case = dict(zip(CASE, values, strict=True)) | {"ranks": ranks.world_size}
        if any(case.items() <= one.items() for one in done):
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = measure(settings(*values, Path(folder)), options.data, ranks)
        ranks.barrier()  # all have read what is done
        if ranks.rank == 0:
            with options.lines.open("a") as lines:
                lines.write(json.dumps(case | found) + "\n")
        gc.collect()
    disconnect()


def deepspeed_estimate(model: torch.nn.Module, stage: int, ranks: int) -> int | None:
    """Ask DeepSpeed's own estimator for the model states of a rank in bytes; None for stages that it does not know."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as of_stage_3
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as of_stage_2

    def elements(module: torch.nn.Module, recurse: bool) -> int:
        return sum(getattr(one, "ds_numel", one.numel()) for one in module.parameters(recurse))

    total, largest = elements(model, True), max(elements(module, False) for module in model.modules())
    if stage == 2:
        return int(of_stage_2(total, ranks, 1, cpu_offload=False)[1])
    if stage == 3:
        return int(of_stage_3(total, largest, ranks, 1, cpu_offload=False, cpu_offload_params=False)[1])
    return None


def estimators_table(rows: list[dict[str, Any]]) -> str:
    """Format what DeepSpeed's estimators say of the dense cases in bf16, whose states alone they know."""
    lines = [
        "| ranks | ZeRO | size | states held, MB | `trelm plan` | DeepSpeed's estimator | peak held, MB | "
        "the estimate's share of it |"
    ]
    lines.append("|---" * 8 + "|")
    for row in rows:
        if row["precision"] == "bf16" and not row["routed"] and not row["checkpointing"] and row["states_deepspeed"]:
            theirs = error(row["states_deepspeed"], row["states"])
            lines.append(
                f"| {row['ranks']} | {row['zero']} | {row['size']} | {row['states'] / 1e6:.2f} | "
                f"{row['states_error']:+.1f}% | {theirs:+.1f}% | {row['peak'] / 1e6:.2f} | "
                f"{row['states_deepspeed'] / row['peak']:.0%} |"
            )
    return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> str:
    """Format the errors as Markdown: over all cases, the largest and the mean of their sizes."""
    lines = [
        "| precision | ranks | ZeRO | cases | model states, % | saved activations, % | peak, % |",
        "|---" * 7 + "|",
    ]
    for kind in sorted({(row["precision"], row["ranks"], row["zero"]) for row in rows}, reverse=True):
        own = [row for row in rows if (row["precision"], row["ranks"], row["zero"]) == kind]
        parts = [[abs(row[f"{name}_error"]) for row in own] for name in ("states", "saved", "peak")]
        shown = " | ".join(f"{statistics.mean(part):.2f} (at most {max(part):.2f})" for part in parts)
        lines.append(f"| {' | '.join(map(str, kind))} | {len(own)} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--out", type=Path, help="default: docs/benchmarks/planned_memory.json and docs/planning.md")
    parser.add_argument("--lines", type=Path, help=argparse.SUPPRESS)  # of the ranks that this starts
    options = parser.parse_args()
    if "RANK" in os.environ:
        return on_ranks(options)
    out = options.out or ROOT / "docs" / "benchmarks" / "planned_memory.json"
    lines = out.with_suffix(".lines")
    for count in options.ranks:
        own = ["--data", options.data, "--lines", str(lines), "--sizes", *options.sizes]
        own += ["--stages", *map(str, options.stages), "--precisions", *options.precisions]
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", __file__]
        subprocess.run([sys.executable, *start, *own], check=True)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    result = {
        "device": "CPU", "date": datetime.date.today().isoformat(),
        "versions": {name: version(name) for name in ("torch", "deepspeed")}, "cases": rows,
    }  # fmt: skip
    print(table(rows))
    out.write_text(json.dumps(result, indent=1) + "\n")
    lines.unlink()
    if options.out is None:
        text = f"{table(rows)}\n\nThe same models by DeepSpeed's own estimators:\n\n{estimators_table(rows)}"
        PAGE.write_text(with_table(PAGE.read_text(), text, MARK, PAGE))


if __name__ == "__main__":
    main()
