from __future__ import annotations

import pytest
import torch
from trelm_kernels import mask_columns
from trelm_kernels.path_mask import BLOCK_D, BLOCK_S, launch, reference

from tests.kernels.conftest import DTYPES


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("neurons", "size", "chosen"),
    [(1, 1, 1), (30, BLOCK_D, BLOCK_S), (9, BLOCK_D + 1, BLOCK_S + 1), (8, 2 * BLOCK_D - 1, BLOCK_S - 1), (6, 5, 0)],
)
def test_equals_a_loop(neurons: int, size: int, chosen: int, dtype: torch.dtype) -> None:
    torch.manual_seed(size)
    gradient = torch.randn(neurons, size).to(dtype)
    rows, kept = torch.randperm(neurons)[:chosen], torch.rand(size) < 0.4
    expected, left, whole = gradient.clone(), 0.0, 0.0
    for row in rows.tolist():
        for column in range(size):
            whole += float(gradient[row, column]) ** 2
            if not kept[column]:
                expected[row, column] = 0
            left += float(expected[row, column]) ** 2
    for mask in (launch, reference, mask_columns):
        found = gradient.clone()
        norms = mask(found, rows, kept)
        assert torch.equal(found, expected)
        torch.testing.assert_close(norms, torch.tensor([left, whole]), rtol=1e-5, atol=1e-6)


def test_a_gradient_that_is_a_view_is_refused() -> None:
    wide = torch.randn(4, 8)
    with pytest.raises(ValueError, match="gradient: must be contiguous"):
        launch(wide[:, :5], torch.tensor([0]), torch.ones(5, dtype=torch.bool))


def test_the_operator_is_well_formed() -> None:
    torch.library.opcheck(mask_columns, (torch.randn(6, 5), torch.tensor([1, 4]), torch.rand(5) < 0.5))
