"""The DeepSpeed settings that work here, those that decide nothing, and what to do instead of the others.

An allow-list, because DeepSpeed accepts much that trains wrongly without a word: misspelt names, a second precision
beside `trainer.precision`, checkpoints that cannot be resumed. tests/engine/test_ds_files.py trains with each that
works; `tools/ds_table.py` writes all of them into docs/deepspeed.md, and tests/engine/test_ds_table.py looks there for
every key that DeepSpeed knows.
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
        stages: the ZeRO stages under which DeepSpeed reads it.
    """

    allows: Callable[[Any], bool]
    words: str
    auto: Any = None
    stages: tuple[int, ...] = (0, 1, 2, 3)


class Unused(NamedTuple):
    """A setting that decides nothing here.

    Attributes:
        usual: the value that says what is done anyway.
        why: for people.
    """

    usual: Any
    why: str


def _is_whole(value: Any) -> bool:
    """Tell whether a value is a whole number of 64 bits, which people also write as 5e8; true and false are none."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.maxsize and value % 1 == 0
    )


def _one_of(*values: Any) -> Rule:
    shown = ", ".join(str(value) for value in values)
    words = f"one of {shown}" if len(values) > 1 else shown
    return Rule(lambda value: value in values and not isinstance(value, bool), words)


def _size(auto: int | None = None, least: int = 0) -> Rule:
    return Rule(lambda value: _is_whole(value) and value >= least, f"a whole number of at least {least}", auto)


def _under(stages: tuple[int, ...], rules: dict[str, Rule]) -> dict[str, Rule]:
    return {f"zero_optimization.{name}": rule._replace(stages=stages) for name, rule in rules.items()}


_FLAG = Rule(lambda value: isinstance(value, bool), "true or false")
_SUMS = _one_of("fp32", "bf16")
_OFFLOAD = {"device": _one_of("none", "cpu"), "pin_memory": _FLAG}
SECTIONS = (
    "bf16",
    "data_types",
    "zero_optimization",
    "zero_optimization.offload_optimizer",
    "zero_optimization.offload_param",
)
# "auto" as in Hugging Face's files: what ds_configs/ has.
RULES: dict[str, Rule] = {
    "wall_clock_breakdown": _FLAG,
    "gradient_predivide_factor": _one_of(1),
    "bf16.immediate_grad_update": _FLAG,
    "data_types.grad_accum_dtype": _SUMS,
    "communication_data_type": _SUMS,
    "zero_optimization.stage": _one_of(0, 1, 2, 3),
    **_under(
        (1, 2, 3),
        {
            "reduce_bucket_size": _size(50_000_000, least=1),
            "reduce_scatter": _FLAG,
            "overlap_comm": _FLAG,
            "contiguous_gradients": _FLAG,
        },
    ),
    **_under(
        (1, 2),
        {
            "allgather_bucket_size": _size(50_000_000, least=1),
            "round_robin_gradients": _FLAG,
            "use_multi_rank_bucket_allreduce": _FLAG,
            "ignore_unused_parameters": _FLAG,
        },
    ),
    **_under(
        (3,),
        {
            "sub_group_size": _size(1_000_000_000, least=1),
            "stage3_prefetch_bucket_size": _size(50_000_000),
            "stage3_param_persistence_threshold": _size(100_000),
            "stage3_model_persistence_threshold": _size(sys.maxsize),
            "stage3_max_live_parameters": _size(1_000_000_000),
            "stage3_max_reuse_distance": _size(1_000_000_000),
            "memory_efficient_linear": _FLAG,
            "log_trace_cache_warnings": _FLAG,
        },
    ),
    **_under((1, 2, 3), {f"offload_optimizer.{name}": rule for name, rule in _OFFLOAD.items()}),
    **_under((3,), {f"offload_param.{name}": rule for name, rule in _OFFLOAD.items()}),
}

_OWN_ADAMW = "this program, which has an AdamW of its own"
# What the run's configuration decides, by what. A file says "auto", the same, or nothing.
DECIDED = {
    "train_batch_size": "trainer.global_batch_size",
    "train_micro_batch_size_per_gpu": "trainer.micro_batch_tokens, which counts tokens,",
    "gradient_accumulation_steps": "the global batch and the ranks",
    "gradient_clipping": "optimizer.max_grad_norm",
    "bf16.enabled": "trainer.precision",
    "bf16.check_grad_overflow": "this program, which never applies a gradient that is not finite,",
    "zero_optimization.compute_grad_norm": "this program, which judges steps by it,",
    "steps_per_print": "this program, which logs by itself",
    "zero_allow_untested_optimizer": _OWN_ADAMW,
    "zero_force_ds_cpu_optimizer": _OWN_ADAMW,
}

UNUSED = {
    "steps_per_print": Unused(None, "trelm logs every trainer.log_every steps"),
    "zero_optimization.allgather_partitions": Unused(True, "DeepSpeed itself does not look at it"),
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": Unused(False, "`trelm export` writes the model"),
}

_PRECISION = "use trainer.precision bf16 or fp32"
_OWN_LOADER = "the order of samples is trelm's own, see docs/loader.md"
_OWN_CHECKPOINTS = "checkpoints are trelm's own, see docs/checkpoints.md"
_TRACKING = "training is followed in MLflow, see docs/tracking.md"
INSTEAD = {
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
    "zero_optimization.elastic_checkpoint": "what it saves cannot be resumed; trelm's own checkpoints fit any ranks",
    "zero_optimization.cpu_offload": "write offload_optimizer: {device: cpu}",
    "zero_optimization.cpu_offload_params": "write offload_param: {device: cpu}",
    "zero_optimization.cpu_offload_param": "write offload_param: {device: cpu}",
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": "`trelm export` writes the model",
}
