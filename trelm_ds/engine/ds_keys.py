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
_TRUE = Rule(lambda value: value is True, "true")
_FORMAT = _one_of("fp32", "bf16")
_OFFLOAD = {"device": _one_of("none", "cpu"), "pin_memory": _FLAG}
_NVME = ("nvme_path", "buffer_count")
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
    "gradient_allreduce_op": _one_of("mean"),
    "gradient_predivide_factor": _one_of(1),
    "managed_gradient_accumulation": _TRUE,
    "communication_data_type": _FORMAT,
    "bf16.immediate_grad_update": _FLAG,
    "data_types.grad_accum_dtype": _FORMAT,
    "data_types.param_dtype": _FORMAT,
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
            "parameter_alignment": _FLAG,
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
            "stage3_allgather_sequential": _FLAG,
            "stage3_use_all_reduce_for_fetch_params": _FLAG,
            "memory_efficient_linear": _FLAG,
            "enable_sanity_checks": _FLAG,
            "zero_hpz_partition_size": _one_of(1),
            "log_trace_cache_warnings": _FLAG,
        },
    ),
    **_under((1, 2, 3), {f"offload_optimizer.{name}": rule for name, rule in _OFFLOAD.items()}),
    **_under((3,), {"offload_optimizer.ratio": _one_of(1)}),
    **_under((3,), {f"offload_param.{name}": rule for name, rule in _OFFLOAD.items()}),
}

# What the run's configuration decides, by what. A file says "auto", the same, or nothing.
_ADAMW = "this program, which has an AdamW of its own"
DECIDED = {
    "train_batch_size": "trainer.global_batch_size",
    "train_micro_batch_size_per_gpu": "trainer.micro_batch_tokens, which counts tokens,",
    "gradient_accumulation_steps": "the global batch and the ranks",
    "gradient_clipping": "optimizer.max_grad_norm",
    "bf16.enabled": "trainer.precision",
    "bf16.check_grad_overflow": "this program, which never applies a gradient that is not finite,",
    "zero_optimization.compute_grad_norm": "this program, which judges steps by it,",
    "zero_allow_untested_optimizer": _ADAMW,
    "zero_force_ds_cpu_optimizer": _ADAMW,
    "steps_per_print": "this program, which logs by itself",
    "timers.throughput.enabled": "this program, which measures by itself",
}

_UNREAD = "DeepSpeed itself does not look at it"
_OF_NVME = Unused(None, "it is for NVMe")
UNUSED = {
    "steps_per_print": Unused(None, "trelm logs every trainer.log_every steps"),
    "timers": Unused(
        {"throughput": {"enabled": False}},
        "trelm measures tokens per second itself, and DeepSpeed's timer would wait for the GPU twice a micro-batch",
    ),
    "disable_allgather": Unused(False, _UNREAD),
    "vocabulary_size": Unused(None, "the dataset's tokenizer decides it"),
    "zero_optimization.allgather_partitions": Unused(True, _UNREAD),
    "zero_optimization.load_from_fp32_weights": Unused(True, "trelm loads checkpoints itself, fp32 weights included"),
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": Unused(False, "`trelm export` writes the model"),
    **{f"zero_optimization.offload_param.{name}": _OF_NVME for name in (*_NVME, "buffer_size", "max_in_cpu")},
    **{
        f"zero_optimization.offload_optimizer.{name}": _OF_NVME
        for name in (*_NVME, "pipeline_read", "pipeline_write", "fast_init")
    },
}

_PRECISION = "use trainer.precision bf16 or fp32"
_MASTERS = "the optimizer keeps weights and moments in fp32; leave it out"
_EIGHT_BITS = "it makes 8-bit numbers of what is exchanged; leave it out"
_OWN_ADAMW = "it belongs to DeepSpeed's own optimizer, and trelm's AdamW is used; leave it out"
_OWN_LOADER = "the order of samples is trelm's own, see docs/loader.md"
_OWN_CHECKPOINTS = "checkpoints are trelm's own, see docs/checkpoints.md"
_TRACKING = "training is followed in MLflow, see docs/tracking.md"
_GONE = "DeepSpeed has it no more; delete it"
_NO_EXPERTS = "the model has no experts; delete it"
INSTEAD = {
    "fp16": _PRECISION,
    "amp": _PRECISION,
    "torch_autocast": _PRECISION,
    "bfloat16": "write bf16: {enabled: auto}",
    "bf16.bf16_master_weights_and_grads": _MASTERS,
    "bf16.bf16_optimizer_states": _MASTERS,
    "data_types.buffer_dtype": "buffers keep their formats; leave it out",
    "data_types.keep_in_fp32_modules": "buffers keep their formats; leave it out",
    "gradient_accumulation_dtype": "write data_types: {grad_accum_dtype: fp32}",
    "grad_accum_dtype": "write data_types: {grad_accum_dtype: fp32}",
    "prescale_gradients": "losses are means over the global batch already; leave it out",
    "seq_parallel_communication_data_type": "it is for DeepSpeed's sequence parallelism; set model.sequence_parallel",
    "sequence_parallel_size": "set model.sequence_parallel in the run's configuration instead",
    "tensor_parallel": "set model.tensor_parallel in the run's configuration instead",
    "compile": "set trainer.compile in the run's configuration instead",
    "pipeline": "layers are not shared out over ranks; see docs/tensor_parallel.md for models that do not fit",
    "expert_parallel": _NO_EXPERTS,
    "use_data_before_expert_parallelism": _NO_EXPERTS,
    "hybrid_engine": "it generates text while training; delete it",
    "weight_quantization": "weights are not quantized; delete it",
    "data_efficiency": _OWN_LOADER,
    "curriculum_learning": _OWN_LOADER,
    "dataloader_drop_last": "set loader.tail in the run's configuration instead",
    "activation_checkpointing": "set model.activation_checkpointing in the run's configuration instead",
    "checkpoint": _OWN_CHECKPOINTS,
    "datastates_ckpt": _OWN_CHECKPOINTS,
    "nebula": _OWN_CHECKPOINTS,
    "load_universal_checkpoint": _OWN_CHECKPOINTS,
    "use_node_local_storage": _OWN_CHECKPOINTS,
    "aio": "it is for NVMe, whose files no checkpoint would hold",
    "comms_logger": "tools/bench/communication.py counts what ranks exchange",
    "flops_profiler": "tools/bench/mfu.py counts FLOPs; DeepSpeed's profiler sees no Triton kernel",
    "memory_breakdown": "it collects garbage at every call, which makes a step of milliseconds take seconds",
    "dump_state": "RUN/ds_config.json is what DeepSpeed gets",
    "log_level": "DeepSpeed's log is kept to warnings; leave it out",
    "autotuning": "it starts runs of its own; delete it",
    "disable_python_gc": "nothing here would collect garbage then; leave it out",
    "tensorboard": _TRACKING,
    "wandb": _TRACKING,
    "comet": _TRACKING,
    "csv_monitor": _TRACKING,
    **dict.fromkeys(("compression_training", "quantize_training", "eigenvalue", "progressive_layer_drop"), _GONE),
    **dict.fromkeys(("sparse_attention", "sparse_gradients", "elasticity", "graph_harvesting"), _GONE),
    **{
        f"zero_optimization.{name}": _GONE
        for name in ("legacy_stage1", "mics_shard_size", "mics_hierarchical_params_gather", "zeropp_loco_param")
    },
    "zero_optimization.elastic_checkpoint": "what it saves cannot be resumed; trelm's own checkpoints fit any ranks",
    "zero_optimization.pipeline_loading_checkpoint": _OWN_CHECKPOINTS,
    "zero_optimization.cpu_offload": "write offload_optimizer: {device: cpu}",
    "zero_optimization.cpu_offload_params": "write offload_param: {device: cpu}",
    "zero_optimization.cpu_offload_param": "write offload_param: {device: cpu}",
    "zero_optimization.cpu_offload_use_pin_memory": "write pin_memory into offload_optimizer and offload_param",
    "zero_optimization.offload_optimizer.super_offload": _OWN_ADAMW,
    "zero_optimization.offload_optimizer.cpuadam_cores_perc": _OWN_ADAMW,
    "zero_optimization.zenflow": _OWN_ADAMW,
    "zero_optimization.save_muon_momentum_buffer_in_memory": _OWN_ADAMW,
    "zero_optimization.zero_quantized_weights": _EIGHT_BITS,
    "zero_optimization.zero_quantized_nontrainable_weights": _EIGHT_BITS,
    "zero_optimization.zero_quantized_gradients": _EIGHT_BITS,
    "zero_optimization.override_module_apply": "models are not built within deepspeed.zero.Init; leave it out",
    "zero_optimization.leaf_module": "trainer.compile gathers layers as a whole where it has to; leave it out",
    "zero_optimization.stage3_module_granularity_threshold": "a gradient is missing at some values of it; leave it out",
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": "`trelm export` writes the model",
}
