"""A choice written down, and the command that uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.planning.made_plans import choice
from trelm_ds.planning.written import command_to_use, without, write_choice


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    return write_choice(choice(1, 4096), {"zero_optimization": {"stage": 1}}, tmp_path / "best.yaml", "made")[0]


def test_settings_and_their_deepspeed_file(settings: Path) -> None:
    written = yaml.safe_load(settings.read_text())
    assert written["model"] == {"tensor_parallel": 1, "activation_checkpointing": False}
    assert written["trainer"]["micro_batch_tokens"] == 4096
    assert json.loads(Path(written["trainer"]["ds_config"]).read_text()) == {"zero_optimization": {"stage": 1}}
    assert settings.read_text().startswith("# made\n")


def test_the_command_lets_the_choice_win(settings: Path) -> None:
    given = ["--config", "a b.yaml", "--trainer.micro_batch_tokens", "64", "--trainer.seed=1"]
    given += ["--model.tensor_parallel=2", "--trainer.ds_config", "x.json", "--optimizer.lr", "1e-4"]
    assert command_to_use(given, "D", settings, 1) == (
        "trelm pretrain --config 'a b.yaml' --trainer.seed=1 --optimizer.lr 1e-4 "
        f"--config {settings} --data D --out RUN"
    )
    assert command_to_use([], "D", settings, 8) == (
        f"torchrun --standalone --nproc-per-node 8 -m trelm_ds pretrain --config {settings} --data D --out RUN"
    )


def test_several_nodes_are_a_job(settings: Path) -> None:
    given = ["--config", "a.yaml", "--trainer.micro_batch_tokens", "64", "--config=b.yaml", "--trainer.seed", "1"]
    assert command_to_use(given, "D", settings, 4, 2) == (
        f"TRELM_DATA=D TRELM_CONFIG='a.yaml b.yaml {settings}' TRELM_OUT=RUN "
        "sbatch -N 2 --gres=gpu:4 slurm/pretrain_large.sh --trainer.seed 1"
    )


def test_options_are_left_out_with_their_values() -> None:
    assert without(["--out", "O", "--a", "--out=P", "b", "--outer", "c"], {"--out"}) == ["--a", "b", "--outer", "c"]
    assert without(["--json", "--a", "b", "--all"], {"--out"}, {"--json", "--all"}) == ["--a", "b"]
