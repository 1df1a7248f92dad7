"""Write the tables of docs/deepspeed.md: every setting that the installed DeepSpeed knows, and what comes of it here.

    python tools/ds_table.py

What is allowed, ignored or refused is in trelm_ds/engine/ds_keys.py; the names are asked of DeepSpeed, so that those of
a new version appear as unknown, and a test fails.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trelm_ds.distributed import import_deepspeed
from trelm_ds.engine.ds_keys import DECIDED, INSTEAD, RULES, SECTIONS, UNUSED

PAGE = Path(__file__).resolve().parents[1] / "docs" / "deepspeed.md"
BEGIN, END = "<!-- ds-table -->", "<!-- /ds-table -->"
WORKS, DECIDES, IGNORED, REFUSED, UNKNOWN = (
    "works",
    "decided by the run",
    "ignored with a warning",
    "refused",
    "unknown",
)
_TITLES = {
    "": "outside of sections",
    "zero_optimization": "in `zero_optimization`",
    "zero_optimization.offload_optimizer": "in `zero_optimization.offload_optimizer`",
    "zero_optimization.offload_param": "in `zero_optimization.offload_param`",
    "bf16": "in `bf16`",
    "data_types": "in `data_types`",
    "checkpoint": "in `checkpoint`",
    "activation_checkpointing": "in `activation_checkpointing`",
    "comms_logger": "in `comms_logger`",
}
_ORDER = (WORKS, DECIDES, IGNORED, REFUSED, UNKNOWN)


class _Asked(dict[str, Any]):
    """A DeepSpeed file that notes which settings DeepSpeed looks for."""

    names: set[str]
    prefix = ""

    def get(self, key: str, default: Any = None) -> Any:
        self.names.add(f"{self.prefix}{key}")
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.names.add(f"{self.prefix}{key}")
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.names.add(f"{self.prefix}{key}")
        return super().__getitem__(key)

    def keys(self) -> Any:  # of which DeepSpeed asks `in`
        return self


def _looked_for() -> set[str]:
    """Return what DeepSpeed looks for in a file by name, also within sections that have no model."""
    from deepspeed.runtime.config import DeepSpeedConfig

    names: set[str] = set()

    def section(name: str, content: dict[str, Any]) -> _Asked:
        kind = type("_Section", (_Asked,), {"names": names, "prefix": name})
        return kind(content)

    plain = {"train_batch_size": 1, "train_micro_batch_size_per_gpu": 1}
    nested = {name: section(f"{name}.", {}) for name in ("checkpoint", "activation_checkpointing", "data_types")}
    DeepSpeedConfig(section("", plain | nested))
    return names


def _fields(model: Any, section: str) -> Iterator[str]:
    """Yield the names in a file that a pydantic model of DeepSpeed knows."""
    for name, field in model.model_fields.items():
        yield f"{section}.{field.alias or name}"


def known_to_deepspeed() -> list[str]:
    """List every setting that the installed DeepSpeed knows, by dotted name."""
    import_deepspeed()
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.runtime import config
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    models = {
        "bf16": DeepSpeedBF16Config,
        "comms_logger": CommsLoggerConfig,
        "zero_optimization": DeepSpeedZeroConfig,
        "zero_optimization.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
        "zero_optimization.offload_param": DeepSpeedZeroOffloadParamConfig,
    }
    names = _looked_for() | {name for section, model in models.items() for name in _fields(model, section)}
    names |= {f"zero_optimization.{name}" for name in config._REMOVED_ZERO_CONFIG_KEYS}
    return sorted(names - {*SECTIONS, "optimizer", "scheduler"})


def status(name: str) -> tuple[str, str]:
    """Say what comes of a setting, and its values, or what to do instead."""
    section = name.rpartition(".")[0]
    if name in RULES:
        rule = RULES[name]
        auto = "" if rule.auto is None else f'; `"auto"`: {_shown(rule.auto)}'
        under = "" if len(rule.stages) == 4 else f"; read under ZeRO {', '.join(map(str, rule.stages))}"
        return WORKS, f"{rule.words}{auto}{under}"
    for part in (name, section):
        if part in UNUSED:
            return IGNORED, UNUSED[part].why
    if name in DECIDED:
        return DECIDES, DECIDED[name].strip(",")
    for part in (name, section):
        if part in INSTEAD:
            return REFUSED, INSTEAD[part]
    return UNKNOWN, ""


def _shown(number: int) -> str:
    return "no limit" if number == sys.maxsize else f"{number:,}"


def tables() -> str:
    """Write a Markdown table for each section."""
    names = {*known_to_deepspeed(), *RULES, *UNUSED, *DECIDED, *INSTEAD}
    assert all(name.rpartition(".")[0] in {*_TITLES, "timers.throughput"} for name in names)
    lines = []
    for section, title in _TITLES.items():
        rows = [(status(name), name) for name in names if name.rpartition(".")[0] == section]
        lines += [f"| {title} | here | values, or what to do instead |", "|---|---|---|"]
        for (what, words), name in sorted(rows, key=lambda row: (_ORDER.index(row[0][0]), row[1])):
            lines.append(f"| `{name.rpartition('.')[2]}` | {what} | {words} |")
        lines.append("")
    return "\n".join(lines)


def in_page(text: str) -> str:
    """Put the tables into the page's text."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{tables()}{END}{rest.partition(END)[2]}"


def main() -> None:
    """Bring the page up to date."""
    PAGE.write_text(in_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
