"""Settings and results of trials, and what lets results stay."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.planning.made_plans import DEVICE, choice, planned, training
from trelm_ds.config import (
    Config,
    MaskingConfig,
    ModelConfig,
    OptimizerConfig,
    RoutingConfig,
    TrackingConfig,
    TrainerConfig,
    to_yaml,
)
from trelm_ds.config_rules import problems
from trelm_ds.errors import UserError
from trelm_ds.planning import trials as trials_module
from trelm_ds.planning.choices import Choice
from trelm_ds.planning.trial import LOG, RUN, Limits, Outcome
from trelm_ds.planning.trials import (
    RESULT,
    TRIALS,
    Result,
    Trials,
    check_same,
    identity_of,
    remember,
    remembered_device,
    trial_config,
)

LIMITS = Limits(steps=4, seconds=300.0, memory=0)
CONFIGURED = choice(1, 4096)
CONFIG = Config(
    model=ModelConfig(hidden_size=32, num_attention_heads=2),
    masking=MaskingConfig(probability=(0.3, 0.15)),
    routing=RoutingConfig(start_step=100),
    optimizer=OptimizerConfig(warmup_steps=1),
    trainer=TrainerConfig(
        max_steps=1000, eval_every=10, checkpoint_every=1, max_minutes=1.0, resume="never", micro_batch_tokens=4096
    ),
    tracking=TrackingConfig(uri="http://user:secret@host", experiment="mine"),
)


def test_a_trial_is_the_run_without_what_comes_beside() -> None:
    config = trial_config(CONFIG, choice(2, 2048, True), "ds.json", LIMITS)
    assert not list(problems(config))
    trainer = config.trainer
    assert (trainer.max_steps, trainer.checkpoint_every, trainer.log_every, trainer.eval_every) == (1000, 1000, 1, 0)
    assert (trainer.resume, trainer.max_minutes, trainer.ds_config) == ("auto", None, "ds.json")
    assert (trainer.micro_batch_tokens, config.model.activation_checkpointing) == (2048, True)
    assert config.routing.start_step == 0  # most of the run has paths
    assert config.masking == CONFIG.masking
    assert not config.tracking.enabled
    assert "secret" not in to_yaml(config)
    assert config.guards.hang_minutes == 2.5


def test_a_short_run_is_made_longer_so_that_its_end_does_not_come() -> None:
    config = replace(CONFIG, trainer=replace(CONFIG.trainer, max_steps=2), routing=RoutingConfig(enabled=False))
    assert trial_config(config, CONFIGURED, "ds.json", LIMITS).trainer.max_steps == 5


def made(folder: Path, config: Config = CONFIG, **more: object) -> Trials:
    identity = identity_of(config, CONFIGURED, LIMITS, {"--ranks": 1} | more)
    return Trials(config, folder, "DATA", 1, LIMITS, Choice.ds_config, identity)


def test_results_stay_as_long_as_they_are_of_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def pretend(settings: Path, data: str, run: Path, ranks: int) -> list[str]:
        given.append((yaml.safe_load(settings.read_text()), data, ranks))
        return training(run, 8, "time.sleep(9e4)")

    monkeypatch.setattr(trials_module, "pretrain_command", pretend)
    row, trials = planned(choice(2, 2048), 1500.0), made(tmp_path)
    assert trials.kept(row) is None
    folder = trials.folder_of(row.choice)
    (folder / RUN).mkdir(parents=True)
    (folder / LOG).write_text("left by a trial that was interrupted")
    result = trials.run(row, lambda: False)
    assert (result.outcome.status, result.outcome.steps) == ("ok", 4)
    assert trials.kept(row) == result == made(tmp_path).kept(row)
    assert (folder / LOG).read_text() == ""
    settings, data, ranks = given[0]
    assert (data, ranks, settings["trainer"]["micro_batch_tokens"]) == ("DATA", 1, 2048)
    assert json.loads(Path(settings["trainer"]["ds_config"]).read_text())["zero_optimization"]["stage"] == 2
    written = json.loads((folder / RESULT).read_text())
    assert written["planned"] == {
        "tokens_per_s": 1500.0, "peak_bytes": row.memory and row.memory.peak, "step_s": 1.0, "problem": "",
    }  # fmt: skip
    assert made(tmp_path, other="dataset").kept(row) is None
    (folder / RESULT).write_text((folder / RESULT).read_text()[:50])
    assert trials.kept(row) is None


def test_a_trial_does_not_begin_with_another_ones_log_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials_module, "pretrain_command", lambda *_: training(tmp_path / "elsewhere", 0))
    trials, row = made(tmp_path), planned(choice(2, 2048), 1500.0)
    (tmp_path / "old").mkdir()
    trials.folder_of(row.choice).mkdir(parents=True)
    (trials.folder_of(row.choice) / RUN).symlink_to(tmp_path / "old")  # which cannot be removed as a folder can
    with pytest.raises(OSError, match="symbolic link"):
        trials.run(row, lambda: False)


def test_a_folder_of_other_trials_is_refused_in_one_line(tmp_path: Path) -> None:
    before = identity_of(CONFIG, CONFIGURED, LIMITS, {"--data": "one"})
    remember(tmp_path, DEVICE, before)
    (tmp_path / TRIALS).mkdir()
    known = remembered_device(tmp_path)
    assert known == (DEVICE, before)
    check_same(tmp_path, known[1], identity_of(CONFIG, CONFIGURED, LIMITS, {"--data": "one"}))
    elsewhere = replace(CONFIG, tracking=TrackingConfig(), trainer=replace(CONFIG.trainer, checkpoint_every=5))
    check_same(tmp_path, known[1], identity_of(elsewhere, CONFIGURED, LIMITS, {"--data": "one"}))
    other = replace(CONFIG, trainer=replace(CONFIG.trainer, seed=3))
    now = identity_of(other, CONFIGURED, LIMITS._replace(steps=9), {"--data": "two"})
    said = f'--out: {tmp_path} has trials of other settings: trainer.seed was 0, is 3; --data was "one", is "two"; '
    with pytest.raises(UserError, match=re.escape(f"{said}--steps was 4, is 9; give another --out")):
        check_same(tmp_path, before, now)


def test_a_folder_says_what_it_was_planned_with(tmp_path: Path) -> None:
    assert remembered_device(tmp_path) is None
    (tmp_path / TRIALS).mkdir()
    (tmp_path / "tune.json").write_text('{"identity": {}, "device": {"name": "half"}}')
    with pytest.raises(UserError, match=r"tune.json: damaged; delete it, and the trials beside it are made anew"):
        remembered_device(tmp_path)


def test_a_result_is_what_decides_the_next() -> None:
    result = Result(planned(CONFIGURED, 10.0), Outcome("ok", "", 4, 1.0, 12.0, 5))
    assert result.tried == (CONFIGURED, "ok", 12.0)
