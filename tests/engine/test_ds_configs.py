"""The shipped DeepSpeed files: each is explained, and trains, stops and continues."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_distributed_test
from tests.training.test_pretrain import config, continued, losses, without_dropout
from trelm_ds.config import Config, TrainerConfig
from trelm_ds.distributed import connect, disconnect
from trelm_ds.engine import resolve_ds_config
from trelm_ds.settings import shipped_ds_configs

FOLDER = Path(__file__).resolve().parents[2] / "ds_configs"
NAMES = ["zero0", "zero1", "zero1_fp32_sums", "zero2", "zero2_offload", "zero3", "zero3_offload", "zero3_xl"]
README = (FOLDER / "README.md").read_text(encoding="utf-8")


def content(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def test_these_are_shipped() -> None:
    assert [path.name for path in shipped_ds_configs()] == [f"{name}.json" for name in NAMES]
    assert sorted(path.name for path in FOLDER.iterdir()) == ["README.md", *(f"{name}.json" for name in NAMES)]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("name", NAMES)
def test_every_file_resolves(name: str, precision: str, caplog: pytest.LogCaptureFixture) -> None:
    trainer = TrainerConfig(ds_config=f"ds_configs/{name}.json", global_batch_size=64, precision=precision)  # type: ignore[arg-type]
    settings = Config(trainer=trainer)
    settings.optimizer.max_grad_norm = 0.0
    resolved = resolve_ds_config(settings, world_size=2)
    assert "auto" not in json.dumps(resolved)
    assert resolved["gradient_accumulation_steps"] == 32
    assert resolved["bf16"]["enabled"] is (precision == "bf16")
    assert resolved["gradient_clipping"] == 0.0  # left out, DeepSpeed 0.19.8 clips at 1.0: "off" has to be said
    assert resolved["zero_optimization"]["stage"] == int(name.removeprefix("zero")[0])
    expected = ["immediate_grad_update"] if (name, precision) == ("zero1_fp32_sums", "fp32") else []
    assert [record.getMessage().split("'")[1].split(".")[-1] for record in caplog.records] == expected


def keys(found: dict[str, Any]) -> Iterator[str]:
    for key, value in found.items():
        if isinstance(value, dict) and key in ("bf16", "data_types", "zero_optimization"):
            yield from keys(value)
        else:
            yield key


def test_the_page_explains_every_file_and_key() -> None:
    listed = {
        name for row in re.findall(r"^\| (`.*?`) \|", README, re.MULTILINE) for name in re.findall(r"`(.*?)`", row)
    }
    files = {f"{name}.json" for name in NAMES}
    used = {key for name in NAMES for key in keys(content(name))}
    assert {name.rpartition(".")[2] if name not in files else name for name in listed} == files | used
    assert README.count("<!-- planned-table -->") == README.count("<!-- /planned-table -->") == 1


def train_with_each(folder: Path, data: Path) -> None:
    ranks = connect()
    try:
        for name in NAMES:
            settings = without_dropout(config(name.removeprefix("zero"), "bf16", micro_batch_tokens=80))
            continued(settings, data, folder / name / "run", ranks)
    finally:
        disconnect()


@pytest.mark.slow
def test_every_file_trains_and_continues(tiny_dataset: Path, tmp_path: Path) -> None:
    run_distributed_test(train_with_each, 2, tmp_path, tiny_dataset)
    first = losses(tmp_path / "zero1" / "run")
    assert len(first) == 4
    for name in NAMES:
        assert losses(tmp_path / name / "run") == pytest.approx(first, rel=0.01), name
        assert losses(tmp_path / name / "continued") == losses(tmp_path / name / "run"), name
