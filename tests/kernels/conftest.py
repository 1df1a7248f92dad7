"""What all kernel tests share: memory that nothing has written holds NaN, and the rule by which results are judged."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Fresh tensors are full of NaN instead of whatever lay there, most often zeros."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


def assert_as_good(found: Tensor, plain: Tensor, exact: Tensor) -> None:
    """A kernel's error is at most twice that of plain torch in the same precision, plus rounding of the result."""
    assert found.dtype == plain.dtype
    assert found.shape == plain.shape == exact.shape
    assert found.isfinite().all()
    rounding = torch.finfo(plain.dtype).eps * exact.abs().max().clamp(min=1e-3).item()
    error, allowed = (found.double() - exact).abs().max().item(), (plain.double() - exact).abs().max().item()
    assert error <= 2 * allowed + rounding, f"{error} against {allowed} of plain torch"
