"""Resolve a DeepSpeed file: check every setting, and fill its "auto" values from the run's configuration."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trelm_ds import log
from trelm_ds.config import Config
from trelm_ds.engine.ds_keys import DECIDED, INSTEAD, RULES, SECTIONS, UNUSED
from trelm_ds.engine.hugging_face import differs, disagreements, notes
from trelm_ds.errors import UserError
from trelm_ds.files import read_json
from trelm_ds.settings import find_ds_config

_READ_WITH_SUMS = ("zero_optimization.stage", "zero_optimization.allgather_bucket_size")  # by BF16_Optimizer


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
        UserError: the file is missing or malformed, or holds settings that are unknown, wrong, known not to work, or
            contradict the run's configuration: all of them in one line.
    """
    path = find_ds_config(config.trainer.ds_config)
    given = read_json(path, unique_keys=True)
    if not isinstance(given, dict):
        raise UserError(f"{path}:1: expected an object of DeepSpeed settings")
    decided, problems = _decided(config, world_size), dict[str, str]()
    resolved = _checked(given, "", problems)
    resolved.setdefault("zero_optimization", {}).setdefault("stage", 0)
    for name, value in decided.items():
        _fill(resolved, name, value, problems)
    problems = _contradictions(resolved, config.trainer.precision) | problems | disagreements(given, config)
    if problems:
        raise UserError(_one_line(path, problems))
    if passed_over := unused(given, resolved, config.trainer.precision) | notes(given):
        log.warning_rank0(_one_line(path, passed_over, "settings"))
    return resolved


def _decided(config: Config, world_size: int) -> dict[str, Any]:
    """Return the values of `DECIDED`."""
    return {
        "train_batch_size": config.trainer.global_batch_size,
        # Micro-batches are packed by tokens, so their number varies, and the trainer tells the engine which is the last
        # of a step. But DeepSpeed insists on numbers that multiply to the global batch, and concludes from them whether
        # gradients are accumulated at all. So give it the largest number there can be: one sequence per micro-batch.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": sequences_per_rank(config, world_size),
        "gradient_clipping": config.optimizer.max_grad_norm,
        "bf16.enabled": config.trainer.precision == "bf16",
        "bf16.check_grad_overflow": True,
        "zero_optimization.compute_grad_norm": True,
        "steps_per_print": 1_000_000_000,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "timers.throughput.enabled": False,
    }


def _checked(given: dict[str, Any], prefix: str, problems: dict[str, str]) -> dict[str, Any]:
    """Copy the settings that are allowed, with "auto" filled where a rule does it; note what is wrong with others."""
    checked: dict[str, Any] = {}
    for key, value in given.items():
        name = f"{prefix}{key}"
        rule = RULES.get(name)
        if "." in key:  # else "zero_optimization.stage" would pass for the stage, and DeepSpeed not read it
            problems[name] = f"is not a name; write it as a section: {_nested(key)}"
        elif name in SECTIONS and value is not None:
            if isinstance(value, dict):
                checked[key] = _checked(value, f"{name}.", problems)
            else:
                problems[name] = "must be an object"
        elif name in UNUSED or name in ("optimizer", "scheduler"):
            continue
        elif name in DECIDED:
            checked[key] = value
        elif rule is None:
            # What switches something off may be meant for another program, but not where it is a misspelt name of ours.
            if not _asks_for_nothing(value) or (name not in INSTEAD and _similar(name)):
                problems[name] = _advice(name)
        elif value == "auto" and rule.auto is None:
            problems[name] = 'is "auto", but nothing in the run\'s configuration decides it; give a value'
        elif value == "auto" or rule.allows(value):
            value = rule.auto if value == "auto" else value
            checked[key] = int(value) if isinstance(value, float) else value
        elif name.endswith(".device") and value == "nvme":
            problems[name] = "is nvme, whose files no checkpoint would hold; use cpu"
        else:
            problems[name] = f"must be {rule.words}, got {json.dumps(value)[:60]}"
    return checked


def _asks_for_nothing(value: Any) -> bool:
    """Tell whether a setting only switches something off, as files that were made for other programs do."""
    if isinstance(value, dict):  # fp16 or not: trainer.precision decides
        return value.get("enabled") in (False, "auto") or all(_asks_for_nothing(part) for part in value.values())
    return value is None or value is False


def _advice(name: str) -> str:
    if name in INSTEAD:
        return f"is not read from here; {INSTEAD[name]}"
    if near := _similar(name):
        return f"is unknown; did you mean '{near}'?"
    return "is not among the settings that are known to work here, see docs/deepspeed.md; leave it out"


def _similar(name: str) -> str:
    """Return the known setting of the same section whose name is most similar; "" if none is."""
    section, dot, key = name.rpartition(".")
    places = [known.rpartition(".") for known in (*RULES, *SECTIONS, *DECIDED)]
    names = [last for before, _, last in places if before == section]
    if f"stage3_{key}" in names:  # DeepSpeed's names of its own for them
        return f"{section}.stage3_{key}"
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.8)
    return f"{section}{dot}{near[0]}" if near else ""


def _nested(key: str) -> str:
    """Write a dotted key as the objects that it stands for."""
    section, _, last = key.partition(".")
    return f'"{section}": {{"{last}": ...}}'


def _fill(content: dict[str, Any], name: str, value: Any, problems: dict[str, str]) -> None:
    """Set a dotted key; note a problem where the file gives it another value than "auto" or `value`."""
    *sections, key = name.split(".")
    for section in sections:
        content = content.setdefault(section, {})
    given = content.get(key, "auto")
    if differs(given, value):
        text = f'is {str(given)[:60]}, but {DECIDED[name]} says {value}; set it to "auto" or make them agree'
        problems[name] = text
    content[key] = value


def _contradictions(resolved: dict[str, Any], precision: str) -> dict[str, str]:
    """Say what is wrong with settings that are allowed by themselves."""
    problems = {}
    formats = resolved.get("data_types", {})
    sums = {
        "data_types.grad_accum_dtype": formats.get("grad_accum_dtype"),
        "communication_data_type": resolved.get("communication_data_type"),
    }
    for name, given in sums.items():
        if given == "bf16" and precision == "fp32":
            problems[name] = "is bf16, but trainer.precision says fp32; set it to fp32 or leave it out"
    if (weights := formats.get("param_dtype", precision)) != precision:
        problems["data_types.param_dtype"] = f"is {weights}, but trainer.precision says {precision}; leave it out"
    stage = resolved["zero_optimization"]["stage"]
    if sums["data_types.grad_accum_dtype"] == "fp32" and precision == "bf16" and stage == 0:
        problems["data_types.grad_accum_dtype"] = (
            "is fp32, and under trainer.precision bf16 DeepSpeed keeps such sums under ZeRO 1, 2 and 3 only; set "
            "zero_optimization.stage to 1 (ds_configs/zero1_fp32_sums.json), or leave it out"
        )
    return problems


def unused(given: dict[str, Any], resolved: dict[str, Any], precision: str) -> dict[str, str]:
    """Say which settings of a file decide nothing in this run, and why.

    Args:
        given: the file's content.
        resolved: what DeepSpeed gets.
        precision: the run's.
    """
    zero, found = resolved["zero_optimization"], dict[str, str]()
    sums = resolved.get("data_types", {}).get("grad_accum_dtype")
    offloaded = zero.get("offload_optimizer", {}).get("device") == "cpu"
    wraps_bf16 = zero["stage"] == 1 and sums == "fp32" and precision == "bf16" and not offloaded  # BF16_Optimizer
    for name, value in _leaves(given):
        if name in UNUSED:
            if value not in ("auto", None, UNUSED[name].usual):
                found[name] = f"is not used: {UNUSED[name].why}"
        elif name not in RULES or _asks_for_nothing(value) or value == "none":
            continue
        elif zero["stage"] not in RULES[name].stages:
            found[name] = f"is not used: ZeRO {zero['stage']} does not read it"
        elif wraps_bf16 and name.startswith("zero_optimization.") and name not in _READ_WITH_SUMS:
            found[name] = "is not used: ZeRO 1 with gradient sums in fp32 does not read it"
        elif name == "bf16.immediate_grad_update" and not wraps_bf16:
            found[name] = "is not used: only ZeRO 1 with gradient sums in fp32 reads it, in bf16"
    return found


def _leaves(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all settings of the sections that are known, by dotted name."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        if name in SECTIONS:
            yield from _leaves(value or {}, f"{name}.")
        else:
            yield name, value


def _one_line(path: Path, problems: dict[str, str], kind: str = "problems") -> str:
    """Name every problem and its line."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    told = [(_line_of(name, lines), " ".join(f"'{name}' {problem}".split())) for name, problem in problems.items()]
    if len(told) == 1:
        return f"{path}:{told[0][0]}: {told[0][1]}"
    return f"{path}: {len(told)} {kind}: " + "; ".join(f"line {line}: {text}" for line, text in sorted(told))


def _line_of(name: str, lines: list[str]) -> int:
    """Find the line of a dotted name, section by section."""
    number = 0
    for key in name.split("."):
        quoted = json.dumps(key)
        number = next((n for n in range(number, len(lines)) if quoted in lines[n]), number)
    return number + 1
