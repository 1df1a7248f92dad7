"""The plan: every choice with its memory, its traffic and its time, what fits first and the fastest of that."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from trelm_ds.config import Config
from trelm_ds.config_rules import problems
from trelm_ds.engine import resolve_ds_config
from trelm_ds.errors import UserError
from trelm_ds.files import read_json
from trelm_ds.knowledge.tables import MemoryBank, TableGroup, VectorTable
from trelm_ds.model import EncoderConfig, check_degree, flops_per_token, load_config
from trelm_ds.planning.choices import Choice, choices, degrees, sizes_of_micro_batches
from trelm_ds.planning.hardware import CPU, GIB, Device
from trelm_ds.planning.memory import Memory, memory_of
from trelm_ds.planning.model import DTYPES, traced
from trelm_ds.planning.parameters import Parameters
from trelm_ds.planning.samples import Sample, made_up_sample, real_sample
from trelm_ds.planning.step_time import Layout, StepTime, step_time
from trelm_ds.planning.trace import Between, Trace
from trelm_ds.planning.traffic import MicroBatch, of_data_group, of_tensor_group
from trelm_ds.planning.zero import Zero
from trelm_ds.routing import first_layer
from trelm_ds.settings import find_ds_config
from trelm_ds.training import RunData, compact_bytes

VOCABULARY = 30522  # BERT's, where neither a dataset nor a folder says otherwise
_ZERO = "zero_optimization"  # section of a DeepSpeed file
_TRACED = 65536  # tokens of a micro-batch
_NEARLY = 0.98  # of the fastest's speed: no difference that a plan can tell
_PACKED = 1.125  # the largest micro-batch of a step that has one only, over the mean: sequences differ in length
# What training's tensors do not get: context of the device, communication buffers, and what lies fragmented.
_PROGRAM = GIB // 2  # what a rank on a CPU writes into before it has a model: Python, torch, stacks of threads
_CONTEXT, _FRAGMENTED = 3 * GIB // 2, 0.04
_OF_HOST = 0.8  # of a node's CPU memory; loaders, programs and the cache of files have the rest


class Machine(NamedTuple):
    """Where a run is planned for.

    Attributes:
        host: bytes of a node's CPU memory; None where nobody said.
    """

    device: Device
    nodes: int
    per_node: int
    host: int | None = None

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.nodes * self.per_node

    @property
    def usable(self) -> int:
        """Bytes of a device that tensors get; a CPU's are all but those of the program."""
        if self.device.name == CPU:
            return max(0, self.device.memory - _PROGRAM)
        return int(self.device.memory * (1 - _FRAGMENTED)) - _CONTEXT


class Planned(NamedTuple):
    """What a choice comes to; without memory and time where it cannot be run.

    Attributes:
        problem: why it does not fit; "" where it does.
        micro_batches: in a step, on each rank.
        tokens_per_s: tokens of text, over all ranks.
        mfu: the model's FLOPs, without recomputation and queries, over the device's in the time.
        traffic: bytes that a rank hands over in a step, by group and kind.
    """

    choice: Choice
    problem: str
    memory: Memory | None = None
    micro_batches: int = 0
    time: StepTime | None = None
    tokens_per_s: float = 0.0
    mfu: float = 0.0
    traffic: dict[str, dict[str, int]] = {}  # noqa: RUF012  # a NamedTuple's default; nobody writes into it


class Plan(NamedTuple):
    """All choices, best first.

    Attributes:
        step_tokens: tokens of text in a step, over all ranks.
        notes: what was assumed, in words.
    """

    machine: Machine
    rows: list[Planned]
    step_tokens: float
    notes: list[str]

    @property
    def best(self) -> Planned | None:
        """The fastest that fits."""
        return self.rows[0] if self.rows and not self.rows[0].problem else None


class Planner:
    """Plans one run: traces its model once for each degree of tensor parallelism, recomputed or not.

    Args:
        data: its dataset; None to assume sequences as long as the model reads them.

    Raises:
        UserError: without a dataset nothing can be planned with these settings, or their DeepSpeed file is wrong.
    """

    def __init__(self, config: Config, machine: Machine, data: RunData | None) -> None:
        self.config, self.machine, self.data = config, machine, data
        self.sizes = _sizes(config, data)
        self._own_zero = Zero.of(resolve_ds_config(config, 1))
        self.number = DTYPES[config.trainer.precision].itemsize
        self._traces: dict[tuple[int, bool, int], tuple[Trace, Parameters]] = {}
        self._samples: dict[int, Sample] = {}
        length = self.sizes.max_position_embeddings if data is None else float(data.steps.reader.lengths.mean())
        self.step_tokens = config.trainer.global_batch_size * length
        self.sizes_of_micro_batches = sizes_of_micro_batches(
            config.trainer.micro_batch_tokens,
            self._least(),
            self.step_tokens / machine.world_size * max(degrees(config.model.tensor_parallel, machine.per_node)),
        )
        self._sample(self.sizes_of_micro_batches[0])  # what no choice can be planned with is told at once

    def on(self, machine: Machine) -> Planner:
        """Return a planner of the same run elsewhere, on a device of the same kind: it traces nothing anew."""
        other = copy.copy(self)
        other.machine = machine
        return other

    def with_batch(self, sequences: int) -> Planner:
        """Return a planner of the same run with another global batch size; it traces nothing anew."""
        other = copy.copy(self)
        other.config = replace(self.config, trainer=replace(self.config.trainer, global_batch_size=sequences))
        other.step_tokens = self.step_tokens * sequences / self.config.trainer.global_batch_size
        return other

    @property
    def configured(self) -> Choice:
        """The choice that the settings have."""
        config, zero = self.config, self._own_zero
        tokens = max(config.trainer.micro_batch_tokens, self._least())
        return Choice(
            zero.stage, zero.offload, config.model.tensor_parallel, tokens, config.model.activation_checkpointing
        )

    def ds_config(self, choice: Choice) -> dict[str, Any]:
        """Return the DeepSpeed file of a choice: the settings' own, of another stage with a shipped one's ZeRO."""
        own: dict[str, Any] = read_json(find_ds_config(self.config.trainer.ds_config))
        return own if self._is_own(choice) else choice.ds_config() | own | {_ZERO: choice.ds_config()[_ZERO]}

    def _is_own(self, choice: Choice) -> bool:
        return (choice.stage, choice.offload) == (self._own_zero.stage, self._own_zero.offload)

    @property
    def choices(self) -> list[Choice]:
        """All that a plan compares."""
        shares = degrees(self.config.model.tensor_parallel, self.machine.per_node)
        return list(choices(self.sizes_of_micro_batches, shares))

    def plan(self, progress: Callable[[], None] = lambda: None) -> Plan:
        """Plan every choice; `progress` is called after each."""
        rows = []
        for choice in self.choices:
            rows.append(self.planned(choice))
            progress()
        return Plan(self.machine, in_order(rows, self.configured), self.step_tokens, self._notes())

    @property
    def _largest_traced(self) -> int:
        """The largest size that is traced; what the head computes in pieces takes long to trace of more."""
        return max(size for size in self.sizes_of_micro_batches if size <= max(_TRACED, self.sizes_of_micro_batches[0]))

    def _least(self) -> int:
        """Return the tokens of a micro-batch that holds the longest sequence and the queries beside it."""
        if self.data is not None:
            return self.data.steps.least_tokens
        share = self.config.cka.max_token_share if self.config.assesses else 0.0
        return math.ceil(self.sizes.max_position_embeddings * (1 + share))

    def _notes(self) -> list[str]:
        machine = self.machine
        notes = [machine.device.note] if machine.device.note else []
        if self.data is None:
            length = self.sizes.max_position_embeddings
            notes.append(f"without --data: sequences of {length} tokens are assumed; vectors and memory not counted")
        if "offload_param" in read_json(find_ds_config(self.config.trainer.ds_config)).get(_ZERO, {}):
            notes.append("zero_optimization.offload_param is not planned: weights will be less, and steps slower")
        if self.config.model.sequence_parallel:
            notes.append("model.sequence_parallel is not planned: activations under tensor parallelism will be less")
        return notes

    def planned(self, choice: Choice) -> Planned:
        """Plan one choice."""
        layout = Layout(choice.tensor, self.machine.world_size // choice.tensor, self.machine.per_node)
        try:
            self._check(choice, layout)
            return self._computed(choice, layout)
        except UserError as error:
            return Planned(choice, str(error))

    def _check(self, choice: Choice, layout: Layout) -> None:
        batch = self.config.trainer.global_batch_size
        check_degree(self.sizes, choice.tensor)
        if layout.per_node % choice.tensor:
            raise UserError(f"model.tensor_parallel: {choice.tensor} does not divide {layout.per_node} GPUs of a node")
        if batch % layout.data:
            raise UserError(
                f"trainer.global_batch_size {batch} is no multiple of {layout.data} data-parallel ranks; change it, or "
                "the number of GPUs"
            )
        for name, what in problems(choice.applied(self.config)):
            raise UserError(f"{name}: {what}")
        if not choice.stage and self._own_zero.fp32_sums:
            raise UserError("data_types.grad_accum_dtype: ZeRO 0 has no gradient sums in fp32")
        if choice.offload and self.machine.device.name == CPU:
            raise UserError("this machine has no device to offload from")

    def _computed(self, choice: Choice, layout: Layout) -> Planned:
        config, machine = choice.applied(self.config), self.machine
        zero = self._own_zero if self._is_own(choice) else Zero.of(self.ds_config(choice))
        low, high = self._traced_samples()
        _, parameters = self._trace(choice, low)
        own_tokens, at_most = self.step_tokens / layout.data, self._tokens_of_text(choice.micro_batch_tokens)
        micro_batches = max(1, -(-int(own_tokens) // at_most))
        memory = memory_of(
            parameters=parameters,
            zero=zero,
            ranks=layout.data,
            number=self.number,
            trace=self._at(choice, min(at_most, _PACKED * own_tokens)),
            accumulates=micro_batches > 1,
            tables=self._tables(layout.data),
            looked_up=round(4 * self.sizes.hidden_size * high.looked_up * own_tokens),
            at_once=machine.device.name != CPU,
        )
        filled = self._at(choice, own_tokens / micro_batches)
        seconds = micro_batches * filled.seconds(machine.device.attained, config.trainer.precision)
        traffic = self._traffic(choice, layout, zero, parameters, high, own_tokens, micro_batches)
        time = step_time(
            parameters, zero, layout, machine.device.attained, self.number, seconds,
            sum(traffic.get("tensor", {}).values()), traffic.get("data", {}),
        )  # fmt: skip
        speed = self.step_tokens / time.total
        return Planned(
            choice=choice,
            problem=_problem(memory, machine),
            memory=memory,
            micro_batches=micro_batches,
            time=time,
            tokens_per_s=speed,
            mfu=self._mfu(speed, high),
            traffic=traffic,
        )

    def _mfu(self, speed: float, sample: Sample) -> float:
        """Return the share of the devices' FLOP/s that a dense model takes at a speed in tokens of text."""
        scored = len(sample.batch.mlm_positions) / sample.tokens
        flops = speed * flops_per_token(self.sizes, sample.attended, scored)
        return flops / (self.machine.world_size * self.machine.device.flops[self.config.trainer.precision])

    def _traffic(
        self,
        choice: Choice,
        layout: Layout,
        zero: Zero,
        parameters: Parameters,
        sample: Sample,
        own_tokens: float,
        micro_batches: int,
    ) -> dict[str, dict[str, int]]:
        """Count what a rank hands over, by group and kind; look-ups of vectors and memories are about right only."""
        found: dict[str, dict[str, int]] = {}
        if layout.data > 1:
            found["data"] = of_data_group(parameters, layout.data, zero, self.number, micro_batches)
            if rows := round(sample.looked_up * own_tokens):
                found["data"]["all-to-all"] = 4 * self.sizes.hidden_size * rows
        if layout.tensor > 1:
            scale = own_tokens / micro_batches / sample.tokens
            tokens, targets = len(sample.batch.input_ids), len(sample.batch.mlm_positions)
            batch = MicroBatch(round(scale * tokens), round(scale * targets))
            found["tensor"] = {"all-reduce": of_tensor_group(self.sizes, self.number, [batch] * micro_batches)}
        return found

    def _at(self, choice: Choice, tokens: float) -> Between:
        """Return what a micro-batch of so many tokens of text holds and takes.

        Everything is linear in tokens but the place of the peak: it lies below the line between the two that are
        traced, and above it beyond.
        """
        low, high = self._traced_samples()
        share = (tokens - low.tokens) / (high.tokens - low.tokens) if high.tokens > low.tokens else 0.0
        return Between(self._trace(choice, low)[0], self._trace(choice, high)[0], share)

    def _tokens_of_text(self, micro_batch_tokens: int) -> int:
        """Return how many tokens of sequences micro-batches of a size have at most."""
        if self.data is not None:
            return self.data.steps.tokens_of_text(micro_batch_tokens)
        return made_up_sample(self.config, micro_batch_tokens, self.sizes).tokens

    def _traced_samples(self) -> tuple[Sample, Sample]:
        """Return the smallest and the largest micro-batch that are traced."""
        return self._sample(self.sizes_of_micro_batches[0]), self._sample(self._largest_traced)

    def _trace(self, choice: Choice, sample: Sample) -> tuple[Trace, Parameters]:
        key = (choice.tensor, choice.checkpointing, sample.tokens)
        if key not in self._traces:
            on_gpu = self.machine.device.name != CPU
            config = choice.applied(self.config)
            self._traces[key] = traced(config, self.sizes, self.data, sample, choice.tensor, on_gpu)
        return self._traces[key]

    def _sample(self, micro_batch_tokens: int) -> Sample:
        if micro_batch_tokens not in self._samples:
            if self.data is None:
                sample = made_up_sample(self.config, micro_batch_tokens, self.sizes)
            else:
                sample = real_sample(self.config, self.data, micro_batch_tokens, self.sizes.hidden_size)
            self._samples[micro_batch_tokens] = sample
        return self._samples[micro_batch_tokens]

    def _tables(self, ranks: int) -> int:
        """Return the bytes of a rank's shards of vectors, memory bank and neurons off a compact path, on the device."""
        config, meta, group = self.config, torch.device("meta"), TableGroup(0, ranks)
        width, total = self.sizes.hidden_size, 0
        annotator = None if self.data is None else self.data.prepared.annotator
        if annotator is not None and annotator.index.n_vectors and config.injection.placement == "device":
            index, dtype = annotator.index, DTYPES[config.trainer.precision]
            entities = len(index.vector_entities)
            total += VectorTable(entities, index.n_relations, width, dtype, meta, group).bytes
        if annotator is not None and annotator.index.n_memory and config.memory.placement == "device":
            total += MemoryBank(annotator.index.n_memory, width, config.memory, meta, group).bytes
        if config.routes and config.routing.compact and config.routing.placement == "device":
            layers = self.sizes.num_hidden_layers - first_layer(config.routing, self.sizes.num_hidden_layers)
            total += compact_bytes(layers * self.sizes.intermediate_size, width, ranks)
        return total


def _sizes(config: Config, data: RunData | None) -> EncoderConfig:
    """Return the encoder's sizes, which a folder to start from decides."""
    if config.model.init_from is not None:
        return load_config(config.model.init_from)
    info = None if data is None else data.prepared.info
    return EncoderConfig.from_settings(config.model, info.vocab_size if info else VOCABULARY, info.pad if info else 0)


def _problem(memory: Memory, machine: Machine) -> str:
    """Say why a choice does not fit; nothing if it does."""
    if memory.peak > machine.usable:
        over = (memory.peak - machine.usable) / GIB
        return f"needs {over:,.3g} GiB more; {memory.largest()} are most of it"
    on_host = memory.host * machine.per_node
    if machine.host is not None and on_host > _OF_HOST * machine.host:
        given = f"{machine.host / GIB:.1f} GiB, of which tensors get {_OF_HOST:.0%}"
        return f"offloads {on_host / GIB:.1f} GiB to the CPU memory of a node, which has {given}"
    return ""


def in_order(rows: list[Planned], configured: Choice) -> list[Planned]:
    """Order: what fits first, then what lacks least memory, then what cannot be run.

    Of what fits come first those that are nearly as fast as the fastest: of them those that change least of the
    settings, and the simplest; the others by speed.
    """
    fastest = max((row.tokens_per_s for row in rows if not row.problem), default=0.0)

    def place(row: Planned) -> tuple[Any, ...]:
        if row.memory is None:
            return (3,)
        if row.problem:
            return 2, row.memory.peak
        choice = row.choice
        simple = choice.tensor, choice.offload, choice.checkpointing, choice.stage, row.memory.peak
        if row.tokens_per_s > _NEARLY * fastest:
            return 0, sum(one != other for one, other in zip(choice, configured, strict=True)), *simple
        return 1, -row.tokens_per_s, *simple

    return sorted(rows, key=place)
