"""No waiting between the tries at a damaged block."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trelm_ds.shards.reader._WAIT_S", 0.0)
