"""The files of sizes: what they say of themselves is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.test_config import RECIPES, read
from trelm_ds.config import CkaConfig, Config, InjectionConfig, MemoryConfig, RoutingConfig, SelectionConfig
from trelm_ds.engine import resolve_ds_config
from trelm_ds.model import EncoderConfig, MaskedLanguageModel
from trelm_ds.model.partition import check_degree, partition_of

SIZES = ("small", "base", "large", "xl", "xxl")
_DECIDED = ("tensor_parallel", "activation_checkpointing", "micro_batch_tokens", "ds_config")
_NEURONS = re.compile(r"\.feed_forward\.(keys|key_bias|values)$")


def words_of(size: str) -> tuple[str, str]:
    """What a file says in its comment, in one line, and what in its settings."""
    lines = (RECIPES / "sizes" / f"{size}.yaml").read_text().splitlines()
    comments = [line.removeprefix("# ") for line in lines if line.startswith("#")]
    return " ".join(comments), "\n".join(line for line in lines if not line.startswith("#"))


def states(model: MaskedLanguageModel, config: Config, ranks: int) -> float:
    """Bytes of weights, gradients and optimizer on each of the ranks, knowledge routing included."""
    degree = config.model.tensor_parallel
    stage = resolve_ds_config(config, ranks // degree)["zero_optimization"]["stage"]
    shards = ranks // degree
    plain = 2 if config.trainer.precision == "bf16" else 4
    total = 0.0
    for name, parameter in model.named_parameters():
        number = parameter.numel() / (degree if partition_of(name) else 1)
        optimizer = 4 + 4 + 4 + (2 if _NEURONS.search(name) else 0)
        total += number * plain / (shards if stage == 3 else 1)
        total += number * plain / (shards if stage >= 2 else 1)
        total += number * optimizer / (shards if stage >= 1 else 1)
    return total


@pytest.mark.parametrize("size", SIZES)
def test_a_size_is_what_its_comment_says(size: str) -> None:
    said, settings = words_of(size)
    config = read("--config", str(RECIPES / "sizes" / f"{size}.yaml"))
    assert all(f"  {name}: " in settings for name in _DECIDED)
    with torch.device("meta"):
        sizes = EncoderConfig.from_settings(config.model, 30522, 0)
        model = MaskedLanguageModel(sizes, config.model.activation_checkpointing)
    check_degree(sizes, config.model.tensor_parallel)
    (millions,) = re.findall(r"Parameters: ([\d,.]+) million \(30,522 words\)", said)
    number = sum(parameter.numel() for parameter in model.parameters())
    assert number == pytest.approx(float(millions.replace(",", "")) * 1e6, rel=0.02)
    stated = re.findall(r"([\d.]+) GB on each of (\d+)", said)
    assert stated
    for gigabytes, ranks in stated:
        assert int(ranks) % config.model.tensor_parallel == 0
        assert states(model, config, int(ranks)) / 1e9 == pytest.approx(float(gigabytes), rel=0.02)
    assert "come on top and are not counted" in said


def test_sizes_grow() -> None:
    models = [read("--config", str(RECIPES / "sizes" / f"{size}.yaml")).model for size in SIZES]
    work = [model.num_hidden_layers * model.hidden_size**2 for model in models]
    assert work == sorted(set(work))
    assert all(model.intermediate_size == 4 * model.hidden_size for model in models)


def test_small_shows_the_defaults_of_base() -> None:
    """Of all that a smaller model does not force: it is to show what base does, in minutes."""
    small, base = (read("--config", str(RECIPES / "sizes" / f"{size}.yaml")) for size in ("small", "base"))
    for config in (small, base):
        assert config.selection == SelectionConfig()
        assert config.injection == InjectionConfig()
        assert config.memory == MemoryConfig()
        assert config.routing == RoutingConfig()
        assert config.cka == CkaConfig()
    assert (small.cka.mentions, small.cka.max_token_share, small.cka.negatives) == ("chosen", 0.08, 200)
    heads = {config.model.hidden_size // config.model.num_attention_heads for config in (small, base)}
    assert heads == {64}


def test_all_sizes_are_described() -> None:
    found = {path.stem for path in Path(RECIPES / "sizes").glob("*.yaml")}
    assert found == {"tiny", *SIZES}
