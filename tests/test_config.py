"""Settings: what is refused, with which words, and that a printed configuration reads back."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from trelm_ds.config import Config, flatten, to_yaml
from trelm_ds.errors import UserError
from trelm_ds.settings import add_settings, parse

RECIPES = Path(__file__).resolve().parents[1] / "trelm_ds" / "recipes"
SIZES, OBJECTIVES = sorted((RECIPES / "sizes").glob("*.yaml")), sorted(RECIPES.glob("*.yaml"))


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
    pairs = ["--optimizer.betas", "[0.8,0.9]", "--masking.probability", "[0.3, 0.15]"]
    texts = ["--tracking.run_name", "x: y", "--trainer.profile_steps", "10:13"]
    config = read(*pairs, *texts, "--masking.whole_word", "false")
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert read("--config", str(tmp_path / "again.yaml")) == config
    assert flatten(config)["optimizer.betas"] == (0.8, 0.9)
    assert config.masking.probability == (0.3, 0.15)


def test_later_files_win_setting_by_setting(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in ("a.yaml", "b.yaml", "c.yaml"))
    a.write_text("trainer: {max_steps: 5000, log_every: 7}\nmodel: {hidden_size: 96}\noptimizer: {betas: [0.8, 0.9]}\n")
    b.write_text("trainer:\n  log_every: 8\noptimizer:\n  lr: 0.5\n")
    c.write_text("trainer: {micro_batch_tokens: 999}\n")
    config = read("--config", str(a), f"--config={b}", "--config", str(c))
    trainer = config.trainer
    assert (trainer.max_steps, trainer.log_every, trainer.micro_batch_tokens) == (5000, 8, 999)
    assert (config.model.hidden_size, config.optimizer.betas, config.optimizer.lr) == (96, (0.8, 0.9), 0.5)
    assert read("--config", str(b), "--config", str(a)).trainer.log_every == 7
    for argv in ((a, 0, b), (0, a, b), (a, b, 0)):
        given = [["--trainer.log_every", "9"] if one == 0 else ["--config", str(one)] for one in argv]
        assert read(*(arg for args in given for arg in args)).trainer.log_every == 9


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("trainer: {max_steps: 0}", "optimizer: {lr: 1.0}", "a.yaml:1: trainer.max_steps: must be greater than 0"),
        ("trainer: {max_steps: 9}", "\ntrainer: {max_steps: 0}", "b.yaml:2: trainer.max_steps: must be greater than 0"),
        ("trainer: {max_steps: many}", "trainer: {log_every: 3}", "a.yaml:1: trainer.max_steps: expected int"),
        ("trainer: {log_every: 3}", "trainer: {max_steps: many}", "b.yaml:1: trainer.max_steps: expected int"),
        ("trainer: {log_every: 3}", "trainer: {max_stepz: 4}", "b.yaml:1: unknown setting 'trainer.max_stepz'"),
        ("trainer: {log_every: 3}", "trainer: [", "b.yaml:1: not valid YAML"),
        (
            "model: {hidden_size: 100}",
            "trainer: {log_every: 3}",
            "--model.num_attention_heads: must divide hidden_size",
        ),
    ],
)
def test_a_mistake_is_named_by_the_file_it_stands_in(tmp_path: Path, first: str, second: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(first)
    (tmp_path / "b.yaml").write_text(second)
    with pytest.raises(UserError) as error:
        read("--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml"))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("recipe", [*SIZES, *OBJECTIVES], ids=lambda path: path.stem)
def test_every_recipe_is_valid_on_its_own(recipe: Path) -> None:
    # trelm.yaml says what the defaults are.
    assert (read("--config", str(recipe)) == Config()) == (recipe.stem == "trelm")


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda path: path.stem)
@pytest.mark.parametrize("size", SIZES, ids=lambda path: path.stem)
def test_every_size_goes_with_every_objective(size: Path, objective: Path) -> None:
    of_size, of_objective = (stated(path) for path in (size, objective))
    found = flatten(read("--config", str(size), "--config", str(objective)))
    for name, default in flatten(Config()).items():
        value = of_objective.get(name, of_size.get(name, default))
        assert found[name] == (tuple(value) if isinstance(value, list) else value), name
    # Only how much a small world asks may be said by both; the objective, which comes later, then wins.
    assert all(name.startswith("cka.") for name in of_size.keys() & of_objective.keys())


def stated(recipe: Path) -> dict[str, object]:
    """What a recipe says, by dotted name."""
    sections = yaml.safe_load(recipe.read_text())
    return {
        f"{section}.{name}": value for section, settings in (sections or {}).items() for name, value in settings.items()
    }


def test_dkplm_is_its_own_objective_at_every_size() -> None:
    for size in SIZES:
        cka = read("--config", str(size), "--config", str(RECIPES / "dkplm.yaml")).cka
        assert (cka.decoder, cka.triple, cka.mentions, cka.facts_per_mention, cka.negatives) == (
            "product",
            "same",
            "chosen",
            1,
            200,
        )


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        (
            "trainer:\n  max_stepz: 4\n",
            "run.yaml:2: unknown setting 'trainer.max_stepz'; did you mean 'trainer.max_steps'",
        ),
        ("trainr:\n  max_steps: 4\n", "run.yaml:1: unknown setting 'trainr'; did you mean 'trainer'"),
        ("trainer:\n  max_steps: many\n", "run.yaml:2: trainer.max_steps: expected int, got 'many'"),
        (  # which YAML reads as a number in base 60
            "trainer:\n  profile_steps: 10:13\n",
            "run.yaml:2: trainer.profile_steps: expected str or null, got '613'; put it in quotes",
        ),
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
        (
            ["--optimizer.betas", "0.9,0.95"],
            "--optimizer.betas: expected tuple, got '0.9,0.95'; write it as [0.9, 0.98]",
        ),
        (["--memory.word_quantiles", "3"], "expected tuple or null, got '3'; write it as [0.25, 0.75]"),
        (["--routing.top_layers", "many"], "--routing.top_layers: expected int or null, got 'many'"),
        (["--routing.density", "0"], "--routing.density: must be greater than 0"),
        (["--routing.score_ema", "1"], "--routing.score_ema: must be less than 1"),
        (["--routing.top_layers", "0"], "--routing.top_layers: must be at least 1"),
        (["--optimizer.lr", "fast"], "--optimizer.lr: expected float, got 'fast'"),
        (["--kepler", "1"], "--kepler: is a section; give its settings one by one, such as --kepler.weight"),
        (["--trainer.max_stepz", "3"], "--trainer.max_stepz: unknown setting; did you mean --trainer.max_steps?"),
        (
            ["--trainer.max_steps", "2000", "--routing.start_step", "2000"],
            "--routing.start_step: must be less than trainer.max_steps 2000, or no path is ever chosen, got 2000",
        ),
        (["--optimizer.betas", "[0.9, 0.9999]"], "--optimizer.betas: with routing at most"),
        (["--trainer.max_steps", "5"], "--optimizer.warmup_steps: must be less than trainer.max_steps 5, got 1000"),
        (["--optimizer.decay_steps", "5"], "decay_steps: goes with optimizer.schedule wsd, got linear; leave it out"),
        (
            ["--optimizer.schedule", "wsd", "--trainer.max_steps", "2000", "--optimizer.decay_steps", "1001"],
            "--optimizer.decay_steps: must be at most trainer.max_steps 2000 - optimizer.warmup_steps 1000, got 1001",
        ),
        (["--optimizer.schedule", "wsd", "--optimizer.decay_steps", "-1"], "decay_steps: must not be negative, got -1"),
        (["--trainer.eval_every", "25"], "--trainer.eval_every: must be a multiple of log_every 10, got 25"),
        (["--trainer.eval_every", "-10"], "--trainer.eval_every: must not be negative, got -10"),
        (["--trainer.eval_sequences", "0"], "--trainer.eval_sequences: must be greater than 0, got 0"),
        (["--trainer.profile_steps", "10"], "--trainer.profile_steps: must be two numbers of steps such as 10:13, got"),
        (["--trainer.profile_steps", "1:-3"], "--trainer.profile_steps: must be two numbers of steps such as 10:13"),
        (
            ["--trainer.profile_steps", "0:3"],
            "--trainer.profile_steps: must be a:b with 1 <= a < b, for steps a to b -",
        ),
        (["--trainer.profile_steps", "3:3"], "--trainer.profile_steps: must be a:b with 1 <= a < b"),
        (
            ["--trainer.max_steps", "2000", "--trainer.profile_steps", "1999:2002"],
            "--trainer.profile_steps: must end with trainer.max_steps 2000, at most a:2001, got 1999:2002",
        ),
        (["--trainer.keep_checkpoints", "1"], "--trainer.keep_checkpoints: must be at least 2"),
        (["--guards.spike_window", "100000000000000000000"], "--guards.spike_window: must be at most 1000000"),
        (["--guards.hang_minutes", "1e300"], "--guards.hang_minutes: must be at most 1000000"),
        (["--masking.probability", "[0.3, 0]"], "masking.probability: must be greater than 0, or there is nothing"),
        (["--masking.probability", "[1.5, 0.3]"], "--masking.probability: must lie between 0 and 1, got 1.5"),
        (["--masking.probability", "[0.3, .nan]"], "--masking.probability: must lie between 0 and 1, got nan"),
        (
            ["--masking.probability", "[0.3]"],
            "--masking.probability: expected float or a pair such as [0.3, 0.15], got '[0.3]'",
        ),
        (["--masking.random_share", "0.5"], "mask_share + random_share must be at most 1"),
        (["--model.tensor_parallel", "0"], "--model.tensor_parallel: must be greater than 0, got 0"),
        (["--model.sequence_parallel", "true"], "--model.sequence_parallel: needs model.tensor_parallel above 1"),
        (
            ["--model.tensor_parallel", "2", "--trainer.compile", "true"],
            "--trainer.compile: must be false with model.tensor_parallel 2",
        ),
        (
            ["--model.tensor_parallel", "2", "--routing.compact", "true"],
            "--routing.compact: must be false with model.tensor_parallel 2",
        ),
        (["--config", "nowhere.yaml"], "--config: nowhere.yaml does not exist"),
        (["--config"], "--config: needs a file"),
        (["--config", "--trainer.max_steps", "5"], "--config: needs a file"),
    ],
)
def test_a_mistake_on_the_command_line_is_named_by_option(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        read(*argv)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
