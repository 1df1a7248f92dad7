"""How parameters are cut over ranks, and put together again."""

from __future__ import annotations

import pytest
import torch

from trelm_ds.config import ModelConfig
from trelm_ds.errors import UserError
from trelm_ds.model import EncoderConfig, MaskedLanguageModel, cut, join, partition_of
from trelm_ds.model.partition import Partition, check_degree

SIZES = ModelConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=4, intermediate_size=12)


def sizes(vocabulary: int = 50) -> EncoderConfig:
    return EncoderConfig.from_settings(SIZES, vocabulary, 0)


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_parts_are_the_whole(degree: int) -> None:
    """Of every parameter of a model; the vocabulary of 50 words is padded to 52 on four ranks."""
    for name, whole in MaskedLanguageModel(sizes()).named_parameters():
        if (partition := partition_of(name)) is None:
            continue
        parts = [cut(whole, partition, rank, degree) for rank in range(degree)]
        assert len({part.shape for part in parts}) == 1, name
        assert sum(part.numel() for part in parts) < whole.numel() + degree * 8
        assert torch.equal(join(parts, partition, whole.shape[partition.dimension]), whole), name


def test_what_is_cut() -> None:
    names = [name for name, _ in MaskedLanguageModel(sizes()).named_parameters() if partition_of(name)]
    layer = "encoder.layers.0"
    assert names == [
        "encoder.embeddings.word.weight",
        *(f"{layer}.attention.{name}" for name in ("qkv.weight", "qkv.bias", "output.weight")),
        *(f"{layer}.feed_forward.{name}" for name in ("keys", "key_bias", "values")),
    ]


def test_queries_keys_and_values_are_cut_by_heads() -> None:
    rows = torch.arange(24)  # of 4 heads, 2 rows each, three times
    assert cut(rows, Partition(0, blocks=3), 1, 2).tolist() == [4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23]


@pytest.mark.parametrize(("words", "degree", "rows"), [(30_522, 4, 7631), (50_265, 2, 25_133), (5, 4, 2)])
def test_odd_vocabularies_are_padded_with_zeros(words: int, degree: int, rows: int) -> None:
    whole = torch.ones(words, 1)
    parts = [cut(whole, Partition(0), rank, degree) for rank in range(degree)]
    assert [len(part) for part in parts] == [rows] * degree
    assert sum(int(part.sum()) for part in parts) == words
    assert torch.equal(join(parts, Partition(0), words), whole)


@pytest.mark.parametrize(("degree", "what"), [(3, "num_attention_heads 4"), (8, "num_attention_heads 4")])
def test_a_degree_that_does_not_divide(degree: int, what: str) -> None:
    with pytest.raises(UserError, match=rf"^model\.tensor_parallel: {degree} does not divide model\.{what};"):
        check_degree(sizes(), degree)
