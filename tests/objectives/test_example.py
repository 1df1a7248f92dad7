"""CONTRIBUTING.md's objective, as it stands there, in a real run."""

from __future__ import annotations

import re
import sys
import types
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.training.test_pretrain import config, losses
from trelm_ds import objectives
from trelm_ds.checkpoints import export
from trelm_ds.config import Config
from trelm_ds.distributed import Ranks
from trelm_ds.model import load_config
from trelm_ds.run_folder import read_metrics
from trelm_ds.stopping import StopSignals
from trelm_ds.training import dataset
from trelm_ds.training.build import build_run

PAGE = Path(__file__).resolve().parents[2] / "CONTRIBUTING.md"


def code(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    return found.group(1)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's module, registered."""
    module = types.ModuleType("trelm_ds.objectives.mentions")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code("objective-example"), "CONTRIBUTING.md", "exec"), module.__dict__)
    monkeypatch.setattr(dataset, "OBJECTIVES", (*objectives.OBJECTIVES, module.Mentions()))
    return module


def test_the_example_trains(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path, example: Any) -> None:
    settings_of: dict[str, Any] = {"dataclass": dataclass}
    exec(code("objective-settings"), settings_of)
    fields = [("mentions", settings_of["MentionsConfig"], field(default_factory=settings_of["MentionsConfig"]))]
    with_section = make_dataclass("WithSection", fields, bases=(Config,))
    settings = with_section(**vars(config(max_steps=6)))
    settings.mentions.weight = 0.5
    run = tmp_path / "run"
    with StopSignals() as signals:
        assert build_run(settings, str(tiny_dataset), run, one_rank, signals).train() == 0
    points = read_metrics(run)
    assert len(losses(run)) == 6
    for point in points:
        assert point["loss"] == pytest.approx(point["mlm_loss"] + 0.5 * point["mentions_loss"])
        assert 0 <= point["mentions_accuracy"] <= 1
    assert points[-1]["mentions_loss"] < points[0]["mentions_loss"]
    export(run, tmp_path / "model")  # without what belongs to the objective
    assert load_config(tmp_path / "model").hidden_size == settings.model.hidden_size


def test_the_example_passes_the_type_checker(tmp_path: Path) -> None:
    """With its section in the settings, which the checker would miss otherwise."""
    pytest.importorskip("mypy")
    from mypy import api

    text = code("objective-example").replace("config.mentions.weight", "config.kepler.weight")
    (tmp_path / "mentions.py").write_text(text)
    report, errors, status = api.run(
        ["--config-file", str(PAGE.with_name("pyproject.toml")), str(tmp_path / "mentions.py")]
    )
    assert status == 0, report + errors
