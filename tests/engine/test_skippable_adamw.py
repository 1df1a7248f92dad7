"""A step of the optimizer that is left out."""

from __future__ import annotations

import torch

from trelm_ds.engine import SkippableAdamW


def test_the_optimizer_leaves_everything_when_told_to() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = SkippableAdamW([weight], lr=0.1)
    weight.grad = torch.ones(3)
    optimizer.skips = True
    optimizer.step()
    assert torch.equal(weight, torch.ones(3))
    assert not optimizer.state
    optimizer.skips = False
    optimizer.step()
    assert not torch.equal(weight, torch.ones(3))
