from __future__ import annotations

import copy

import pytest
import torch

from trelm_ds.routing import LazyAdamW

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1}


def parameters() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(12, 7)), torch.nn.Parameter(torch.randn(9))]


def groups(lazy: list[torch.nn.Parameter], plain: list[torch.nn.Parameter]) -> list[dict[str, object]]:
    return [{"params": lazy, "lazy": True, "weight_decay": 0.2}, {"params": plain}]


def test_with_all_gradients_it_is_torch_s() -> None:
    (a, b), (c, d) = parameters(), parameters()
    ours = LazyAdamW(groups([a], [b]), **SETTINGS)
    theirs = torch.optim.AdamW([{"params": [c], "weight_decay": 0.2}, {"params": [d]}], **SETTINGS)
    for _ in range(20):
        for one, other in ((a, c), (b, d)):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(a, c, rtol=1e-6, atol=1e-6)
    assert torch.equal(b, d)


def test_rows_without_gradient_keep_weight_moments_and_counts() -> None:
    a, b = parameters()
    ours = LazyAdamW(groups([a], [b]), **SETTINGS)
    a.grad, b.grad = torch.randn_like(a), torch.zeros_like(b)
    ours.step()
    before, plain = copy.deepcopy(ours.state[a]), b.detach().clone()
    weight = a.detach().clone()
    a.grad = torch.randn_like(a)
    a.grad[3:9] = 0
    ours.step()
    assert torch.equal(a[3:9], weight[3:9])
    assert not (a[:3] == weight[:3]).any()
    for name in ("exp_avg", "exp_avg_sq", "updates"):
        value = before[name]
        assert torch.equal(ours.state[a][name][3:9], value[3:9])
    assert ours.state[a]["updates"][:3].eq(2).all()
    assert not torch.equal(b, plain)  # decays, as torch's does


def test_a_group_without_gradient_is_left() -> None:
    a, b = parameters()
    ours = LazyAdamW(groups([a], [b]), **SETTINGS)
    before = a.detach().clone()
    b.grad = torch.randn_like(b)
    ours.step()
    assert torch.equal(a, before)
    assert a not in ours.state


def test_continues_from_its_state() -> None:
    runs = []
    for saved in (False, True):
        a, b = parameters()
        ours = LazyAdamW(groups([a], [b]), **SETTINGS)
        torch.manual_seed(1)
        for step in range(8):
            if saved and step == 4:
                state = copy.deepcopy(ours.state_dict())
                ours = LazyAdamW(groups([a], [b]), **SETTINGS)
                ours.load_state_dict(state)
            for parameter in (a, b):
                parameter.grad = torch.randn_like(parameter) * (torch.rand_like(parameter) < 0.5)
            ours.step()
        runs.append((a, b, ours.state[a]["updates"]))
    assert all(map(torch.equal, *runs))


def test_a_closure_and_a_schedule() -> None:
    a, b = parameters()
    ours = LazyAdamW(groups([a], [b]), **SETTINGS)
    schedule = torch.optim.lr_scheduler.LambdaLR(ours, lambda step: 0.0 if step == 0 else 1.0)
    before = a.detach().clone()

    def closure() -> torch.Tensor:
        ours.zero_grad()
        loss = (a.sum() + b.sum()).square()
        loss.backward()
        return loss

    expected = float((before.sum() + b.detach().sum()).square())
    assert ours.step(closure).item() == pytest.approx(expected, rel=1e-3)
    assert torch.equal(a, before)
    schedule.step()
    ours.step(closure)
    assert not torch.equal(a, before)
