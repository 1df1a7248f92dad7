"""A random model of transformers and ours with the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedModel

from tests.model.tiny_models import make_hf
from trelm_ds.model import MaskedLanguageModel, load_pretrained


@pytest.fixture(params=["bert", "roberta"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[PreTrainedModel, MaskedLanguageModel]:
    """(transformers' model, ours with the same weights), both in eval mode."""
    hf = make_hf(request.param)
    hf.save_pretrained(tmp_path / "hf")
    return hf, load_pretrained(tmp_path / "hf").eval()
