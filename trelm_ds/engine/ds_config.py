"""Resolve a DeepSpeed file: fill its "auto" values from the run's configuration and refuse contradictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trelm_ds.config import Config
from trelm_ds.errors import UserError
from trelm_ds.files import read_json
from trelm_ds.settings import find_ds_config

_REFUSED = {  # sections that the run's configuration replaces -> advice
    "optimizer": "set optimizer.* in the run's configuration instead",
    "scheduler": "set optimizer.schedule and optimizer.warmup_steps in the run's configuration instead",
    "fp16": "use trainer.precision bf16 or fp32",
}


def sequences_per_rank(config: Config, world_size: int) -> int:
    """Return how many sequences each rank gets per step on average; packing may move some between ranks.

    Raises:
        UserError: the global batch size is not a multiple of the number of ranks.
    """
    share, rest = divmod(config.trainer.global_batch_size, world_size)
    if rest:
        raise UserError(
            f"trainer.global_batch_size: {config.trainer.global_batch_size} is no multiple of {world_size} ranks; "
            "change one of the two"
        )
    return share


def resolve_ds_config(config: Config, world_size: int) -> dict[str, Any]:
    """Read the DeepSpeed file of `trainer.ds_config` and fill its "auto" values.

    Raises:
        UserError: the file is missing or malformed, a value contradicts the run's configuration, nothing fills an
            "auto", or a section belongs into the run's configuration.
    """
    path = find_ds_config(config.trainer.ds_config)
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}:1: expected an object of DeepSpeed settings")
    for key, advice in _REFUSED.items():
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
    required: dict[str, tuple[Any, str]] = {  # key -> value, what decides it
        "train_batch_size": (config.trainer.global_batch_size, "trainer.global_batch_size"),
        # Micro-batches are packed by tokens, so their number varies, and the trainer tells the engine which is the last
        # of a step. But DeepSpeed insists on numbers that multiply to the global batch, and concludes from them whether
        # gradients are accumulated at all. So give it the largest number there can be: one sequence per micro-batch.
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
    for name, (value, source) in required.items():
        _fill(content, name, value, source, path)
    if left := _first_auto(content, ""):
        raise UserError(
            f"{path}: '{left}' is \"auto\", but nothing in the run's configuration decides it; give a value"
        )
    return content


def _fill(content: dict[str, Any], name: str, value: Any, source: str, path: Path) -> None:
    """Set a dotted key; raise where the file gives it another value than "auto" or `value`."""
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
    """Return the dotted name of the first "auto" that is left; None without one."""
    for key, value in content.items():
        if value == "auto":
            return f"{prefix}{key}"
        if isinstance(value, dict) and (found := _first_auto(value, f"{prefix}{key}.")):
            return found
    return None
