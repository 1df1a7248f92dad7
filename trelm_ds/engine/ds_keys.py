"""The DeepSpeed settings that are known to work here, and what to do instead of the others.

An allow-list, because DeepSpeed accepts much that trains wrongly without a word: misspelt names, a second precision
beside `trainer.precision`, checkpoints that cannot be resumed. tests/engine/test_ds_files.py trains with each of these.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """What a setting may be.

    Attributes:
        allows: whether a value is allowed.
        words: what is allowed, for people.
        auto: the value that "auto" stands for; None where nothing decides it.
    """

    allows: Callable[[Any], bool]
    words: str
    auto: Any = None


def _is_whole(value: Any) -> bool:
    """Tell whether a value is a whole number of 64 bits, which people also write as 5e8; true and false are none."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.maxsize and value % 1 == 0
    )


def _one_of(*values: Any) -> Rule:
    shown = ", ".join(str(value) for value in values)
    return Rule(lambda value: value in values and not isinstance(value, bool), f"one of {shown}")


_FLAG = Rule(lambda value: isinstance(value, bool), "true or false")


def _size(auto: int | None = None, least: int = 0) -> Rule:
    return Rule(lambda value: _is_whole(value) and value >= least, f"a whole number of at least {least}", auto)


_OFFLOAD = {"device": _one_of("none", "cpu"), "pin_memory": _FLAG}
_ZERO: dict[str, Rule] = {
    "stage": _one_of(0, 1, 2, 3),
    "allgather_partitions": _FLAG,
    # "auto" as in Hugging Face's files: what ds_configs/ has.
    "allgather_bucket_size": _size(50_000_000, least=1),
    "reduce_bucket_size": _size(50_000_000, least=1),
    "reduce_scatter": _FLAG,
    "overlap_comm": _FLAG,
    "contiguous_gradients": _FLAG,
    "round_robin_gradients": _FLAG,
    "use_multi_rank_bucket_allreduce": _FLAG,
    "ignore_unused_parameters": _FLAG,
    "sub_group_size": _size(1_000_000_000, least=1),
    "stage3_prefetch_bucket_size": _size(50_000_000),
    "stage3_param_persistence_threshold": _size(100_000),
    "stage3_model_persistence_threshold": _size(sys.maxsize),
    "stage3_max_live_parameters": _size(1_000_000_000),
    "stage3_max_reuse_distance": _size(1_000_000_000),
    "stage3_gather_16bit_weights_on_model_save": _FLAG,  # of a function that `trelm export` does not need
    "memory_efficient_linear": _FLAG,
    "log_trace_cache_warnings": _FLAG,
}
SECTIONS = (
    "bf16",
    "data_types",
    "zero_optimization",
    "zero_optimization.offload_optimizer",
    "zero_optimization.offload_param",
)
_SUMS = _one_of("fp32", "bf16")
RULES: dict[str, Rule] = {
    "wall_clock_breakdown": _FLAG,
    "bf16.immediate_grad_update": _FLAG,
    "data_types.grad_accum_dtype": _SUMS,
    "communication_data_type": _SUMS,
    **{f"zero_optimization.{name}": rule for name, rule in _ZERO.items()},
    **{
        f"zero_optimization.{part}.{name}": rule
        for part in ("offload_optimizer", "offload_param")
        for name, rule in _OFFLOAD.items()
    },
}

_PRECISION = "use trainer.precision bf16 or fp32"
_OWN_LOADER = "the order of samples is trelm's own, see docs/loader.md"
_OWN_CHECKPOINTS = "checkpoints are trelm's own, see docs/checkpoints.md"
_TRACKING = "training is followed in MLflow, see docs/tracking.md"
INSTEAD = {
    "optimizer": "set optimizer.* in the run's configuration instead",
    "scheduler": "set optimizer.schedule and optimizer.warmup_steps in the run's configuration instead",
    "fp16": _PRECISION,
    "amp": _PRECISION,
    "torch_autocast": _PRECISION,
    "data_efficiency": _OWN_LOADER,
    "curriculum_learning": _OWN_LOADER,
    "activation_checkpointing": "set model.activation_checkpointing in the run's configuration instead",
    "checkpoint": _OWN_CHECKPOINTS,
    "nebula": _OWN_CHECKPOINTS,
    "use_node_local_storage": _OWN_CHECKPOINTS,
    "memory_breakdown": "it collects garbage at every call, which makes a step of milliseconds take seconds",
    "tensorboard": _TRACKING,
    "wandb": _TRACKING,
    "comet": _TRACKING,
    "csv_monitor": _TRACKING,
    "aio": "it is for NVMe, whose files no checkpoint would hold",
    "prescale_gradients": "losses are means over the global batch already",
    "gradient_predivide_factor": "losses are means over the global batch already",
    "zero_optimization.elastic_checkpoint": "what it saves cannot be resumed; trelm's own checkpoints fit any ranks",
    "zero_optimization.cpu_offload": "write offload_optimizer: {device: cpu}",
    "zero_optimization.cpu_offload_params": "write offload_param: {device: cpu}",
    "zero_optimization.cpu_offload_param": "write offload_param: {device: cpu}",
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": "`trelm export` writes the model",
}
