"""Schedule wsd at its corners."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from trelm_ds.config import Config, OptimizerConfig, TrainerConfig
from trelm_ds.engine import Decay, decay_of
from trelm_ds.engine.schedule import wsd


def config(max_steps: int = 100, schedule: str = "wsd", decay_steps: int | None = None) -> Config:
    optimizer = OptimizerConfig(schedule=schedule, warmup_steps=10, decay_steps=decay_steps)  # type: ignore[arg-type]
    return Config(optimizer=optimizer, trainer=TrainerConfig(max_steps=max_steps))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (config(), Decay(90, 100)),
        (config(max_steps=11), Decay(10, 11)),
        (config(max_steps=3), Decay(2, 3)),  # the last 10%, at least one step
        (config(decay_steps=40), Decay(60, 100)),
        (config(decay_steps=90), Decay(10, 100)),
        (config(decay_steps=0), Decay(100, 100)),
        (config(schedule="linear"), None),
    ],
)
def test_when_the_decay_is(settings: Config, expected: Decay | None) -> None:
    assert decay_of(settings) == expected


@pytest.mark.parametrize(
    ("steps_done", "share"),
    [
        (0, 0.0),
        (1, 0.1),
        (9, 0.9),
        (10, 1.0),
        (60, 1.0),
        (61, 1 - math.sqrt(1 / 40)),
        (70, 0.5),
        (99, 1 - math.sqrt(39 / 40)),
        (100, 0.0),
        (1000, 0.0),
    ],
)
def test_shares_of_the_peak(steps_done: int, share: float) -> None:
    assert wsd(Decay(60, 100), warmup_steps=10)(steps_done) == share


def test_without_warm_up_without_stable_phase_and_without_decay() -> None:
    assert [wsd(Decay(0, 4), 0)(step) for step in (0, 1, 4)] == [1.0, 0.5, 0.0]
    assert [wsd(Decay(4, 4), 0)(step) for step in (0, 3, 4)] == [1.0, 1.0, 1.0]
    assert [wsd(Decay(2, 4), 2)(step) for step in (0, 1, 2, 4)] == [0.0, 0.5, 1.0, 0.0]


def test_the_default_decay_begins_behind_a_long_warm_up() -> None:
    settings = replace(config(max_steps=40), optimizer=OptimizerConfig(schedule="wsd", warmup_steps=38))
    assert decay_of(settings) == Decay(38, 40)


def test_before_the_decay_the_length_of_the_run_does_not_matter() -> None:
    short, long = wsd(Decay(60, 100), 10), wsd(Decay(6000, 10000), 10)
    assert [short(step) for step in range(61)] == [long(step) for step in range(61)]


def test_as_a_scheduler_it_sets_the_rate_of_each_step() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, wsd(Decay(3, 4), 2))
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == [0.0, 0.25, 0.5, 0.5]
    assert schedule.state_dict()["lr_lambdas"] == [None]  # a checkpoint does not bring the old run's decay back
