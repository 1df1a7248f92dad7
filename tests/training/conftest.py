"""Datasets with knowledge, by two kinds of tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.knowledge_dataset import prepare_knowledge


@pytest.fixture(scope="session")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_knowledge(tmp_path_factory.mktemp("knowledge"))


@pytest.fixture(scope="session")
def byte_level(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_knowledge(tmp_path_factory.mktemp("byte_level"), str(shared_data / "tokenizers" / "roberta-base"))


@pytest.fixture(params=["wordpiece", "byte_level"])
def dataset(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)
