"""What a refused conversion must be: one line, and no trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.relatives import published
from tests.relatives.published import Tensors
from trelm_ds.errors import UserError
from trelm_ds.relatives import RELATIVES, convert

MAKE: dict[str, Callable[[Path], Tensors]] = {
    "kepler": published.kepler,
    "colake": published.colake,
    "ernie": published.ernie,
    "luke": published.luke,
    "dkplm": published.dkplm,
}
WEIGHTS = {name: relative.files[0] for name, relative in RELATIVES.items()}


def refused(tmp_path: Path, name: str, message: str, **options: Any) -> str:
    """Convert `tmp_path`/published, expecting this error, one line of it, and nothing beside."""
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message) as caught:
        convert(name, tmp_path / "published", tmp_path / "deep" / "out", **options)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    return str(caught.value)
