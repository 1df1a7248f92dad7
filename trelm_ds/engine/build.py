"""The DeepSpeed engine: a file of `ds_configs/` with its "auto" values filled from the run's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trelm_ds.config import Config, OptimizerConfig
from trelm_ds.distributed import import_deepspeed
from trelm_ds.engine.skippable_adamw import SkippableAdamW
from trelm_ds.errors import UserError
from trelm_ds.files import read_json
from trelm_ds.model import KeyValueFeedForward
from trelm_ds.settings import find_ds_config

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_NOT_OURS = {
    "optimizer": "set optimizer.* in the run's configuration instead",
    "scheduler": "set optimizer.schedule and optimizer.warmup_steps in the run's configuration instead",
    "fp16": "use trainer.precision bf16 or fp32",
}


def sequences_per_rank(config: Config, world_size: int) -> int:
    """Sequences of a step for each rank, on average: the packing moves some between ranks.

    Raises:
        UserError: the global batch is no multiple of the ranks.
    """
    share, rest = divmod(config.trainer.global_batch_size, world_size)
    if rest:
        raise UserError(
            f"trainer.global_batch_size: {config.trainer.global_batch_size} is no multiple of {world_size} ranks; "
            "change one of the two"
        )
    return share


def resolve_ds_config(config: Config, world_size: int) -> dict[str, Any]:
    """Reads the DeepSpeed file and fills its "auto" values.

    Raises:
        UserError: missing or malformed file, a value that contradicts the run's configuration, an "auto" nothing fills,
            or a section that belongs to the run's configuration.
    """
    path = find_ds_config(config.trainer.ds_config)
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}:1: expected an object of DeepSpeed settings")
    for key, advice in _NOT_OURS.items():
        if key in content:
            raise UserError(f"{path}: '{key}' is not read from here; {advice}")
    zero = content.setdefault("zero_optimization", {})
    if not isinstance(zero, dict) or zero.get("stage", 0) not in (0, 1, 2, 3):
        raise UserError(f"{path}: 'zero_optimization' must be an object whose 'stage' is 0, 1, 2 or 3")
    for key in ("offload_optimizer", "offload_param"):
        if isinstance(offload := zero.get(key), dict) and offload.get("device") == "nvme":
            raise UserError(
                f"{path}: 'zero_optimization.{key}.device' is nvme, whose files no checkpoint would hold; use cpu"
            )
    ours: dict[str, tuple[Any, str]] = {
        "train_batch_size": (config.trainer.global_batch_size, "trainer.global_batch_size"),
        # How many micro-batches a step has follows from its tokens, and the trainer tells the engine which is the last.
        # DeepSpeed wants numbers that multiply to the global batch all the same, and takes from them whether there is
        # accumulation at all: these are the bounds, one sequence in each of as many micro-batches.
        "train_micro_batch_size_per_gpu": (1, "trainer.micro_batch_tokens, which counts tokens,"),
        "gradient_accumulation_steps": (sequences_per_rank(config, world_size), "the global batch and the ranks"),
        "gradient_clipping": (config.optimizer.max_grad_norm, "optimizer.max_grad_norm"),
        "bf16.enabled": (config.trainer.precision == "bf16", "trainer.precision"),
        "bf16.check_grad_overflow": (True, "this program, which never applies a gradient that is not finite,"),
        "zero_optimization.compute_grad_norm": (True, "this program, which judges steps by it,"),
        "steps_per_print": (1_000_000_000, "this program, which logs by itself (trainer.log_every)"),
        "zero_allow_untested_optimizer": (True, "this program, which has an AdamW of its own"),
        "zero_force_ds_cpu_optimizer": (False, "this program, which has an AdamW of its own"),
    }
    for name, (value, source) in ours.items():
        _fill(content, name, value, source, path)
    if left := _first_auto(content, ""):
        raise UserError(
            f"{path}: '{left}' is \"auto\", but nothing in the run's configuration decides it; give a value"
        )
    return content


def _fill(content: dict[str, Any], name: str, value: Any, source: str, path: Path) -> None:
    *sections, key = name.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise UserError(f"{path}: '{section}' must be an object")
    given = content.get(key, "auto")
    if given != "auto" and (given != value or isinstance(given, bool) != isinstance(value, bool)):
        raise UserError(
            f"{path}: '{name}' is {given}, but {source} says {value}; set it to \"auto\" or make them agree"
        )
    content[key] = value


def _first_auto(content: dict[str, Any], prefix: str) -> str | None:
    for key, value in content.items():
        if value == "auto":
            return f"{prefix}{key}"
        if isinstance(value, dict) and (found := _first_auto(value, f"{prefix}{key}.")):
            return found
    return None


def parameter_groups(model: nn.Module, weight_decay: float, routed: bool) -> list[dict[str, Any]]:
    """Matrices decay, vectors (biases, LayerNorm) do not, as in BERT; `routed`: neurons in lazy groups of their own."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                lazy = routed and isinstance(module, KeyValueFeedForward) and name != "value_bias"
                shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO 3 has taken the data itself apart
                groups.setdefault((lazy, len(shape) > 1), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if matrices else 0.0} | ({"lazy": True} if lazy else {})
        for (lazy, matrices), parameters in sorted(groups.items(), reverse=True)
    ]


def build_engine(
    model: nn.Module, config: Config, ds_config: dict[str, Any], device: torch.device
) -> tuple[DeepSpeedEngine, SkippableAdamW]:
    """DeepSpeed's engine around the model, with a schedule of warm-up and decay, and the optimizer within it."""
    from transformers import get_scheduler

    deepspeed = import_deepspeed()

    settings: OptimizerConfig = config.optimizer
    groups = parameter_groups(model, settings.weight_decay, config.routes)
    optimizer = SkippableAdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)
    name = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule

    def schedule(basic: torch.optim.Optimizer) -> Any:
        return get_scheduler(name, basic, settings.warmup_steps, config.trainer.max_steps)

    engine, *_ = deepspeed.initialize(
        model=model.to(device), optimizer=optimizer, lr_scheduler=schedule, config=ds_config, dist_init_required=False
    )
    return engine, optimizer
