"""The sections `optimizer` and `scheduler`, as files that were made for Hugging Face's trainer have them.

Optimizer and schedule are our own, and the run's configuration decides them. So these sections may say the same, or
"auto"; anything else is a mistake that would otherwise train with other numbers than the file shows.
"""

from __future__ import annotations

from typing import Any

from trelm_ds.config import Config

Decided = dict[str, tuple[Any, str]]  # parameter -> value, what decides it
SCHEDULES = {"WarmupLR": "constant", "WarmupDecayLR": "linear"}  # as Hugging Face's trainer names them
_OURS = "trelm's AdamW"


def differs(given: Any, value: Any) -> bool:
    """Tell whether a file says something else than a value: 1 is not true, but 0 is 0.0."""
    return bool(given != "auto" and (given != value or isinstance(given, bool) != isinstance(value, bool)))


def disagreements(given: dict[str, Any], config: Config) -> dict[str, str]:
    """Say what the sections have that the run's configuration has not, by dotted name."""
    return _in_optimizer(given.get("optimizer"), config) | _in_scheduler(given.get("scheduler"), config)


def notes(given: dict[str, Any]) -> dict[str, str]:
    """Say what a file leaves open and is not done as DeepSpeed would."""
    section = given.get("scheduler") or {}
    if not section or "warmup_type" in (section.get("params") or {}):
        return {}
    return {
        "scheduler": "has no warmup_type: its warm-up is linear here and in Hugging Face's trainer, not logarithmic"
    }


def _in_optimizer(section: Any, config: Config) -> dict[str, str]:
    settings = config.optimizer
    decided: Decided = {
        "lr": (settings.lr, "optimizer.lr"),
        "betas": (list(settings.betas), "optimizer.betas"),
        "eps": (settings.eps, "optimizer.eps"),
        "weight_decay": (settings.weight_decay, "optimizer.weight_decay"),
        "max_grad_norm": (settings.max_grad_norm, "optimizer.max_grad_norm"),
        "adam_w_mode": (True, _OURS),
        "bias_correction": (True, _OURS),
        "amsgrad": (False, _OURS),
    }
    kind = _type(section)
    if kind not in ("auto", "AdamW"):
        return {"optimizer.type": f"is {kind}, but trelm trains with AdamW; {_delete('optimizer')}"}
    return _in_section("optimizer", section, decided)


def _in_scheduler(section: Any, config: Config) -> dict[str, str]:
    settings = config.optimizer
    kind = _type(section)
    decided: Decided = {
        "warmup_min_lr": (0, "trelm's warm-up"),
        "warmup_max_lr": (settings.lr, "optimizer.lr"),
        "warmup_num_steps": (settings.warmup_steps, "optimizer.warmup_steps"),
        "warmup_type": ("linear", "trelm's warm-up"),
        "last_batch_iteration": (-1, "trelm's schedule"),
    }
    if kind != "WarmupLR":
        decided["total_num_steps"] = (config.trainer.max_steps, "trainer.max_steps")
    if kind == "auto" or SCHEDULES.get(kind) == settings.schedule:
        return _in_section("scheduler", section, decided)
    same = f"optimizer.schedule {SCHEDULES[kind]}" if kind in SCHEDULES else "no optimizer.schedule"
    text = f"is {kind}, which is {same}, but the run has {settings.schedule}; {_delete('scheduler')}"
    return {"scheduler.type": text}


def _type(section: Any) -> str:
    return str(section.get("type", "auto"))[:60] if isinstance(section, dict) else "auto"


def _in_section(name: str, section: Any, decided: Decided) -> dict[str, str]:
    if section is None:
        return {}
    params = section.get("params") if isinstance(section, dict) else None
    if not isinstance(section, dict) or not isinstance(params, dict | None):
        return {name: f"must be an object with type and params; {_delete(name)}"}
    problems = {}
    for key in section.keys() - {"type", "params"}:
        problems[f"{name}.{key}"] = f"is not known here; {_delete(name)}"
    for key, given in (params or {}).items():
        if key == "torch_adam":  # how it is computed
            continue
        value, source = decided.get(key, (None, ""))
        if not source:
            problems[f"{name}.params.{key}"] = f"is not known here; {_delete(name)}"
        elif differs(given, value):
            text = f'is {str(given)[:60]}, but {source} says {value}; set it to "auto", make them agree, or'
            problems[f"{name}.params.{key}"] = f"{text} {_delete(name)}"
    return problems


def _delete(name: str) -> str:
    settings = {"optimizer": "optimizer.*", "scheduler": "optimizer.schedule and optimizer.warmup_steps"}[name]
    return f"delete '{name}', {settings} of the run's configuration decide"
