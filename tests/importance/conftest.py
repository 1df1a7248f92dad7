"""A dataset of several shards and a backbone that fits it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from trelm_ds.shards import Manifest, ShardReader, ShardWriter


def reshard(source: Path, target: Path, block_sequences: int = 16) -> Path:
    """The dataset `source` in shards of two blocks."""
    reader = ShardReader(source)
    target.mkdir()
    for folder in ("entities", "graph", "tokenizer"):
        shutil.copytree(source / folder, target / folder)
    size = 7000  # bytes: more than one block has, less than two
    writer = ShardWriter(target, reader.manifest.tokenizer["vocab_size"], size, block_sequences)
    for sample in range(reader.manifest.n_sequences):
        writer.add(reader.sequence(sample))
    manifest = dataclasses.replace(reader.manifest, shards=writer.close(), files={})
    manifest.save(target)
    return target


@pytest.fixture(scope="session")
def shards(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataset in several shards, each of several blocks; to be copied, not written into."""
    folder = reshard(tiny_dataset, tmp_path_factory.mktemp("shards") / "data")
    manifest = Manifest.load(folder)
    assert len(manifest.shards) > 5
    assert len(manifest.shards[0].blocks) > 1
    return folder


@pytest.fixture
def data(shards: Path, tmp_path: Path) -> Path:
    """A copy of the dataset to score."""
    return Path(shutil.copytree(shards, tmp_path / "data"))


def make_backbone(folder: Path, vocab_size: int, seed: int = 0, **changes: int) -> Path:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    sizes |= {"vocab_size": vocab_size, "max_position_embeddings": 32} | changes
    config = BertConfig(initializer_range=0.2, **sizes)
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def backbone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT without a tokenizer beside it."""
    return make_backbone(tmp_path_factory.mktemp("backbone"), Manifest.load(shards).tokenizer["vocab_size"])
