"""Datasets with knowledge, by two kinds of tokenizer; a process group of this process alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.knowledge_dataset import prepare_knowledge
from trelm_ds.training.distributed import Ranks, connect, disconnect


@pytest.fixture(scope="session")
def one_rank() -> Iterator[Ranks]:
    """DeepSpeed cannot join a second group in one process, so all modules share it."""
    ranks = connect()
    yield ranks
    disconnect()


@pytest.fixture(scope="session")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_knowledge(tmp_path_factory.mktemp("knowledge"))


@pytest.fixture(scope="session")
def byte_level(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_knowledge(tmp_path_factory.mktemp("byte_level"), str(shared_data / "tokenizers" / "roberta-base"))


@pytest.fixture(params=["wordpiece", "byte_level"])
def dataset(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)
