"""Settings: what is refused, with which words, and that a printed configuration reads back."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from trelm_ds.config import Config, flatten, to_yaml
from trelm_ds.errors import UserError
from trelm_ds.settings import add_settings, parse

RECIPES = sorted((Path(__file__).resolve().parents[1] / "trelm_ds" / "recipes").glob("*.yaml"))


def read(*argv: str) -> Config:
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, print_config=None)
    add_settings(parser)
    return parse(parser, list(argv))[0]


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("trainer:\n  max_steps: 5000\n  log_every: 7\n")
    config = read("--config", str(tmp_path / "run.yaml"), "--trainer.max_steps", "6000")
    assert (config.trainer.max_steps, config.trainer.log_every) == (6000, 7)
    assert read("--trainer.max_steps", "6000", "--config", str(tmp_path / "run.yaml")) == config


def test_the_printed_configuration_reads_back(tmp_path: Path) -> None:
    config = read("--optimizer.betas", "[0.8,0.9]", "--tracking.run_name", "x: y", "--masking.whole_word", "false")
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert read("--config", str(tmp_path / "again.yaml")) == config
    assert flatten(config)["optimizer.betas"] == (0.8, 0.9)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid(recipe: Path) -> None:
    assert read("--config", str(recipe)) != Config()


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        (
            "trainer:\n  max_stepz: 4\n",
            "run.yaml:2: unknown setting 'trainer.max_stepz'; did you mean 'trainer.max_steps'",
        ),
        ("trainr:\n  max_steps: 4\n", "run.yaml:1: unknown setting 'trainr'; did you mean 'trainer'"),
        ("trainer:\n  max_steps: many\n", "run.yaml:2: trainer.max_steps: expected int, got 'many'"),
        ("trainer:\n  max_steps: null\n", "run.yaml:2: trainer.max_steps: needs a value, got null"),
        ("", "run.yaml:1: expected settings such as 'trainer:', found nothing"),
        ("? [a, b]\n: 3\n", "run.yaml:1: unknown setting"),
        ("loader: {seed: 99999999999999999999}\n", "run.yaml:1: loader.seed: must be less than 2^63"),
        ("trainer: 3\n", "run.yaml:1: 'trainer' is a section"),
        ("trainer:\n  max_steps: 1\n  max_steps: 2\n", "run.yaml:3: 'trainer.max_steps' stands twice, first on line 2"),
        ("trainer: [\n", "run.yaml:2: not valid YAML"),
        ("- a\n", "run.yaml:1: expected settings"),
        ("\n\nmasking:\n  probability: 1.5\n", "run.yaml:4: masking.probability: must lie between 0 and 1, got 1.5"),
        ("trainer:\n  precision: fp16\n", "run.yaml:2: trainer.precision: expected one of 'bf16', 'fp32', got 'fp16'"),
        ("model:\n  hidden_size: 100\n", "--model.num_attention_heads: must divide hidden_size 100, got 12"),
    ],
)
def test_a_mistake_in_the_file_is_named_by_line(tmp_path: Path, yaml: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml)
    with pytest.raises(UserError) as error:
        read("--config", str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--trainer.max_steps", "0"], "--trainer.max_steps: must be greater than 0, got 0"),
        (["--optimizer.lr", ".inf"], "--optimizer.lr: must be a finite number, got inf"),
        (["--optimizer.lr", "fast"], "--optimizer.lr: expected float, got 'fast'"),
        (["--trainer.max_stepz", "3"], "--trainer.max_stepz: unknown setting; did you mean --trainer.max_steps?"),
        (["--trainer.max_steps", "5"], "--optimizer.warmup_steps: must be less than trainer.max_steps 5, got 1000"),
        (["--trainer.keep_checkpoints", "1"], "--trainer.keep_checkpoints: must be at least 2"),
        (["--masking.random_share", "0.5"], "mask_share + random_share must be at most 1"),
        (["--config", "nowhere.yaml"], "--config: nowhere.yaml does not exist"),
    ],
)
def test_a_mistake_on_the_command_line_is_named_by_option(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        read(*argv)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
