"""One stable phase of schedule wsd continued into several decays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.training import test_pretrain as plain
from tests.training.test_pretrain import train
from trelm_ds.config import Config
from trelm_ds.distributed import Ranks
from trelm_ds.errors import UserError
from trelm_ds.run_folder import read_metrics


def config(max_steps: int, decay_steps: int | None, resume: str = "auto") -> Config:
    chosen = plain.config(max_steps=max_steps, resume=resume, keep_checkpoints=9)
    return replace(chosen, optimizer=replace(chosen.optimizer, schedule="wsd", decay_steps=decay_steps))


def points(run: Path) -> list[tuple[float, float]]:
    return [(point["loss"], point["lr"]) for point in read_metrics(run)]


@pytest.fixture(scope="module")
def stable(one_rank: Ranks, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to step 8, whose decay began at step 6; its checkpoints are of steps 2, 4, 6 and 8."""
    run = tmp_path_factory.mktemp("stable") / "run"
    train(config(8, 2), tiny_dataset, run, one_rank)
    return run


def checkpoint(run: Path, step: int) -> str:
    return str(run / "checkpoints" / f"step-{step:08}")


@pytest.mark.parametrize(
    ("step", "max_steps", "decay_steps"),
    [(4, 6, 2), (4, 10, 6), (6, 7, 1), (6, 9, None)],
)
def test_another_decay_gives_what_a_run_of_its_own_does(
    one_rank: Ranks,
    tiny_dataset: Path,
    stable: Path,
    tmp_path: Path,
    step: int,
    max_steps: int,
    decay_steps: int | None,
) -> None:
    whole, branch = tmp_path / "whole", tmp_path / "branch"
    logits = train(config(max_steps, decay_steps), tiny_dataset, whole, one_rank)
    again = train(config(max_steps, decay_steps, checkpoint(stable, step)), tiny_dataset, branch, one_rank)
    np.testing.assert_array_equal(again, logits)
    assert points(branch) == points(whole)[step:]
    assert len(points(branch)) == max_steps - step


def test_a_decay_that_began_is_finished_but_not_taken_back(
    one_rank: Ranks, tiny_dataset: Path, stable: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        train(config(12, 2, checkpoint(stable, 8)), tiny_dataset, tmp_path / "run", one_rank)
    assert "step-00000008 lies within a decay from step 6 to 8; finish it with trainer.max_steps 8" in str(error.value)
    assert "at a checkpoint up to step 6" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_decay_that_should_have_begun(one_rank: Ranks, tiny_dataset: Path, stable: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        train(config(8, 3, checkpoint(stable, 6)), tiny_dataset, tmp_path / "run", one_rank)
    assert "optimizer.decay_steps: the decay would begin at step 5, " in str(error.value)
    assert "is of step 6; set at most 2, or trainer.max_steps to at least 9" in str(error.value)
    train(config(9, 3, checkpoint(stable, 6)), tiny_dataset, tmp_path / "advised", one_rank)
