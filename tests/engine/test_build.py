"""Building the engine: which errors are DeepSpeed's."""

from __future__ import annotations

import numpy as np
import pytest

from trelm_ds.batches.packing import pack
from trelm_ds.engine.build import _raised_here


def test_an_error_of_our_own_is_a_bug_and_no_setting() -> None:
    """Told as DeepSpeed's refusal it would end with the code of a user's mistake."""
    with pytest.raises(AssertionError) as ours:
        pack(np.array([1, 2, 3]), world_size=2, budget=8)
    assert _raised_here(ours.value)
    with pytest.raises(ValueError, match="invalid literal") as theirs:
        int("three")
    assert not _raised_here(theirs.value)
