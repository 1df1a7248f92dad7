"""The tables of docs/deepspeed.md: what the code does, for every setting that the installed DeepSpeed knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.logged import warns
from tools.ds_table import DECIDES, IGNORED, PAGE, REFUSED, UNKNOWN, WORKS, in_page, known_to_deepspeed, status
from trelm_ds.config import Config, TrainerConfig
from trelm_ds.engine import resolve_ds_config
from trelm_ds.engine.ds_keys import DECIDED, INSTEAD, RULES, SECTIONS, UNUSED
from trelm_ds.errors import UserError

LISTED = {
    name: status(name)
    for name in (*RULES, *UNUSED, *DECIDED, *INSTEAD, "checkpoint.writer", "activation_checkpointing.profile")
}


def of_status(which: str) -> list[str]:
    return [name for name, (what, _) in LISTED.items() if what == which]


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert in_page(text) == text, "run: python tools/ds_table.py"


def test_every_setting_of_deepspeed_has_its_row() -> None:
    """Those of a new version do not, until someone has tried them."""
    known = known_to_deepspeed()
    assert [name for name in known if status(name)[0] == UNKNOWN] == []
    expected = {"train_batch_size", "checkpoint.writer", "activation_checkpointing.profile", "comms_logger.verbose"}
    expected |= {"zero_optimization.zenflow", "zero_optimization.stage3_prefetch_bucket_size", "bf16.enabled"}
    expected |= {"zero_optimization.offload_param.max_in_cpu", "data_types.buffer_dtype", "sparse_gradients"}
    assert expected <= {*known}


def test_a_setting_has_one_place() -> None:
    also_decided = {"steps_per_print"}  # that ours are what DeepSpeed gets is said once
    places = [{*RULES}, {*DECIDED}, {*UNUSED} - also_decided, {*INSTEAD}, {*SECTIONS}]
    assert sum(map(len, places)) == len(set.union(*places))


def written(folder: Path, name: str, value: Any) -> tuple[Path, Config]:
    """A file with one setting, on line 3 or behind."""
    content = value
    for key in reversed(name.split(".")):
        content = {key: content}
    path = folder / "ds.json"
    path.write_text(json.dumps({"comment": None} | content, indent=1))
    return path, Config(trainer=TrainerConfig(ds_config=str(path)))


@pytest.mark.parametrize("name", of_status(REFUSED))
def test_what_is_refused_is_told_with_line_and_advice(name: str, tmp_path: Path) -> None:
    advice = LISTED[name][1]
    told = name if name in INSTEAD else name.rpartition(".")[0]
    path, config = written(tmp_path, name, True)
    with pytest.raises(UserError) as error:
        resolve_ds_config(config, 1)
    assert str(error.value) == f"{path}:{3 + told.count('.')}: '{told}' is not read from here; {advice}"


@pytest.mark.parametrize("name", of_status(IGNORED))
def test_what_is_ignored_is_told_with_its_line(name: str, tmp_path: Path) -> None:
    _, config = written(tmp_path, name, False if UNUSED[name].usual is True else 7)
    with warns(rf"ds.json:{3 + name.count('.')}: '{name}' is not used: "):
        resolved = resolve_ds_config(config, 1)
    kept: Any = resolved
    for key in name.split("."):
        kept = kept.get(key, {})
    assert kept != 7
    assert kept is not False


@pytest.mark.parametrize("name", [name for name in of_status(DECIDES) if not name.startswith("timers")])
def test_what_the_run_decides_is_not_for_the_file(name: str, tmp_path: Path) -> None:
    path, config = written(tmp_path, name, 7)
    with pytest.raises(UserError) as error:
        resolve_ds_config(config, 1)
    assert str(error.value).startswith(f"{path}:{3 + name.count('.')}: '{name}' is 7, but {DECIDED[name]} says ")


@pytest.mark.parametrize("name", of_status(WORKS))
def test_what_works_has_its_values(name: str, tmp_path: Path) -> None:
    path, config = written(tmp_path, name, "neither")
    with pytest.raises(UserError) as error:
        resolve_ds_config(config, 1)
    words = f"'{name}' must be {RULES[name].words}, got \"neither\""
    assert str(error.value) == f"{path}:{3 + name.count('.')}: {words}"
