from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from trelm_kernels import MAX_STEPS, bias_corrections, lazy_adamw
from trelm_kernels.adamw import BLOCK, launch, reference

from tests.kernels.conftest import DTYPES, assert_as_good

LR, BETA1, BETA2, EPS, DECAY = 1e-2, 0.9, 0.98, 1e-6, 0.1
SETTINGS = (LR, BETA1, BETA2, EPS, DECAY)
STEPS = {"kernel": launch, "reference": reference, "operator": lazy_adamw}


def corrections() -> Tensor:
    return bias_corrections(BETA1, BETA2, torch.device("cpu"))


def start(size: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(size)
    weight, first, second = torch.randn(size), torch.randn(size) * 0.1, torch.rand(size) * 0.1
    updates = torch.randint(0, 40, (size,), dtype=torch.int16)
    return [weight.to(dtype), first.to(dtype), second.to(dtype), updates]


def literal(state: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """AdamW as its authors write it, element by element in float64."""
    found = [tensor.double().clone() for tensor in state]
    for i, g in enumerate(gradient.double().tolist()):
        if g == 0:
            continue
        weight, first, second, updates = (tensor[i].item() for tensor in found)
        n = min(updates + 1, MAX_STEPS)
        first, second = BETA1 * first + (1 - BETA1) * g, BETA2 * second + (1 - BETA2) * g * g
        direction = (first / (1 - BETA1**n)) / (math.sqrt(second / (1 - BETA2**n)) + EPS)
        weight -= LR * DECAY * weight + LR * direction
        for tensor, value in zip(found, (weight, first, second, n), strict=True):
            tensor[i] = value
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 37, BLOCK, BLOCK + 1])
def test_as_good_as_plain_torch(size: int, dtype: torch.dtype) -> None:
    gradient = torch.randn(size).to(dtype) * (torch.rand(size) < 0.3)
    exact, plain = literal(start(size, dtype), gradient), start(size, dtype)
    reference(plain[0], gradient, *plain[1:], corrections(), *SETTINGS)
    for step in STEPS.values():
        found = start(size, dtype)
        step(found[0], gradient, *found[1:], corrections(), *SETTINGS)
        for one, other, true in zip(found[:3], plain, exact, strict=False):
            assert_as_good(one, other, true)
        assert torch.equal(found[3].double(), exact[3])
        for one, before in zip(found, start(size, dtype), strict=True):
            assert torch.equal(one[gradient == 0], before[gradient == 0])


@pytest.mark.parametrize("name", STEPS)
def test_equals_torch_where_every_element_has_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    ours = [torch.randn(70), torch.zeros(70), torch.zeros(70), torch.zeros(70, dtype=torch.int16)]
    theirs = torch.nn.Parameter(ours[0].clone())
    optimizer = torch.optim.AdamW([theirs], lr=LR, betas=(BETA1, BETA2), eps=EPS, weight_decay=DECAY)
    for _ in range(30):
        gradient = torch.randn(70)
        theirs.grad = gradient.clone()
        optimizer.step()
        STEPS[name](ours[0], gradient, *ours[1:], corrections(), *SETTINGS)
    torch.testing.assert_close(ours[0], theirs.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", STEPS)
def test_a_late_element_starts_like_a_fresh_one(name: str) -> None:
    state = [torch.zeros(2), torch.zeros(2), torch.zeros(2), torch.zeros(2, dtype=torch.int16)]
    for step in range(20):
        before = state[0].clone()
        STEPS[name](state[0], torch.tensor([1.0, float(step == 19)]), *state[1:], corrections(), *SETTINGS)
    assert state[3].tolist() == [20, 1]
    assert state[0][1].item() == pytest.approx(-LR, rel=1e-4)
    assert (state[0] - before)[0].item() == pytest.approx(-LR, rel=2e-2)


@pytest.mark.parametrize("name", STEPS)
def test_counting_ends(name: str) -> None:
    state = [torch.zeros(1), torch.zeros(1), torch.zeros(1), torch.full((1,), MAX_STEPS, dtype=torch.int16)]
    STEPS[name](state[0], torch.ones(1), *state[1:], corrections(), *SETTINGS)
    assert state[3].item() == MAX_STEPS
    assert state[0].isfinite().all()


@pytest.mark.parametrize("name", STEPS)
def test_nothing_to_do(name: str) -> None:
    for size in (0, 5):
        state, before = start(size), start(size)
        STEPS[name](state[0], torch.zeros(size), *state[1:], corrections(), *SETTINGS)
        assert all(map(torch.equal, state, before))


def test_a_gradient_that_is_no_number_is_not_passed_over() -> None:
    for name in STEPS:
        state = start(3)
        STEPS[name](state[0], torch.tensor([0.0, float("nan"), 1.0]), *state[1:], corrections(), *SETTINGS)
        assert state[0].isnan().tolist() == [False, True, False]


def test_corrections_are_exact() -> None:
    table = bias_corrections(0.9, 0.999, torch.device("cpu"))
    for n in (1, 2, 10, 1000, MAX_STEPS):
        assert table[0, n].item() == pytest.approx(1 - 0.9**n, rel=1e-7)
        assert table[1, n].item() == pytest.approx(math.sqrt(1 - 0.999**n), rel=1e-7)


def test_state_that_is_a_view_is_refused() -> None:
    state = start(8)
    with pytest.raises(ValueError, match="must be contiguous"):
        launch(state[0][::2], torch.ones(4), *(one[::2] for one in state[1:]), corrections(), *SETTINGS)


def test_the_operator_is_well_formed() -> None:
    state = start(9)
    torch.library.opcheck(lazy_adamw, (state[0], torch.randn(9), *state[1:], corrections(), *SETTINGS))
