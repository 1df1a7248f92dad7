"""The tokenizer that fits the made RoBERTas."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.relatives import published


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return published.roberta_tokenizer(tmp_path / "tokenizer")
