"""Which steps are not taken, and when too many were."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from trelm_ds.checkpoints import CheckpointInfo
from trelm_ds.config import GuardsConfig
from trelm_ds.engine import SkippableAdamW
from trelm_ds.errors import UserError
from trelm_ds.training.guards import LOSS, SKIPPED, SPIKE, Guard, gradient_norm


def fed(settings: GuardsConfig, run: Path, losses: list[float]) -> Guard:
    guard = Guard(settings, run, writes=True)
    for loss in losses:
        assert guard.judge(loss) is None
        guard.took(loss)
    return guard


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_skipped_always(loss: float, tmp_path: Path) -> None:
    assert Guard(GuardsConfig(), tmp_path, writes=True).judge(loss) == LOSS


def test_a_spike_is_measured_in_deviations_of_the_window(tmp_path: Path) -> None:
    settings = GuardsConfig(spike_sigma=3.0, spike_window=4)
    guard = fed(settings, tmp_path, [9.0, 1.0, 3.0, 1.0, 3.0])  # mean 2, deviation 1: the first has left the window
    assert guard.judge(4.9) is None
    assert guard.judge(5.1) == SPIKE
    assert guard.judge(-50.0) is None  # a fall is none


def test_nothing_is_a_spike_before_the_window_is_full_or_by_default(tmp_path: Path) -> None:
    assert fed(GuardsConfig(spike_sigma=3.0, spike_window=3), tmp_path, [1.0, 1.1]).judge(1e9) is None
    assert fed(GuardsConfig(spike_window=3), tmp_path, [1.0, 1.1, 1.0]).judge(1e9) is None


def test_a_skipped_loss_does_not_move_the_window(tmp_path: Path) -> None:
    guard = fed(GuardsConfig(spike_sigma=3.0, spike_window=3), tmp_path, [1.0, 1.1, 0.9])
    guard.skipped(4, SPIKE, 1e9, [])
    assert guard.judge(1e8) == SPIKE


def test_skipped_steps_are_written_down_and_counted(tmp_path: Path) -> None:
    guard = Guard(GuardsConfig(max_skipped=2), tmp_path, writes=True)
    guard.skipped(5, LOSS, math.nan, [3, 1, 2])
    guard.skipped(9, SPIKE, 7.5, [4])
    lines = [json.loads(line) for line in (tmp_path / SKIPPED).read_text().splitlines()]
    assert lines == [
        {"step": 5, "reason": LOSS, "loss": "nan", "samples": [3, 1, 2]},
        {"step": 9, "reason": SPIKE, "loss": "7.5", "samples": [4]},
    ]
    with pytest.raises(UserError, match=r"guards.max_skipped: 3 of the last 10 steps were skipped, 2 are allowed"):
        guard.skipped(10, LOSS, math.nan, [8])
    assert '"samples": [8]' in (tmp_path / SKIPPED).read_text()  # before the run ends


def test_only_the_last_thousand_steps_count(tmp_path: Path) -> None:
    guard = Guard(GuardsConfig(max_skipped=1), tmp_path, writes=False)
    for step in (1, 1001, 2001):
        guard.skipped(step, LOSS, math.nan, [])
    assert guard.count == 3
    assert not (tmp_path / SKIPPED).exists()  # another rank writes
    with pytest.raises(UserError, match="2 of the last 1,000"):
        guard.skipped(3000, LOSS, math.nan, [])


def test_its_state_goes_through_json(tmp_path: Path) -> None:
    settings = GuardsConfig(spike_sigma=3.0, spike_window=3)
    guard = fed(settings, tmp_path, [0.1 + 0.2, 1 / 3, 2.0])
    guard.skipped(4, SPIKE, 99.0, [])
    again = Guard(settings, tmp_path, writes=True)
    state = json.loads(json.dumps(guard.manifest()))
    again.load(tmp_path, CheckpointInfo(3, 1, 1, {}, {}, **state))
    assert again.manifest() == guard.manifest()
    assert again.metrics(1.0) == {"skipped_steps": 1.0}
    assert again.judge(50.0) == guard.judge(50.0) == SPIKE


def test_steps_that_come_again_are_written_down_once(tmp_path: Path) -> None:
    guard = Guard(GuardsConfig(max_skipped=9), tmp_path, writes=True)
    for step in (3, 8):
        guard.skipped(step, LOSS, math.nan, [])
    with (tmp_path / SKIPPED).open("a") as stream:
        stream.write('{"step": 9, "rea')  # killed
    again = Guard(GuardsConfig(max_skipped=9), tmp_path, writes=True)
    again.load(tmp_path, CheckpointInfo(5, 1, 1, {}, {}))
    again.skipped(8, LOSS, math.nan, [])
    assert [json.loads(line)["step"] for line in (tmp_path / SKIPPED).read_text().splitlines()] == [3, 8]


def test_the_norm_is_of_all_gradients_together() -> None:
    weights = [
        torch.nn.Parameter(torch.zeros(2)),
        torch.nn.Parameter(torch.zeros(1)),
        torch.nn.Parameter(torch.zeros(1)),
    ]
    optimizer = SkippableAdamW([{"params": weights[:1]}, {"params": weights[1:]}], lr=0.1)
    weights[0].grad, weights[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert gradient_norm(optimizer) == 5.0
    weights[1].grad[0] = math.inf
    assert gradient_norm(optimizer) == math.inf
