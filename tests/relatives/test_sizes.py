"""Sizes that are missing, out of range, or contradict each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.relatives import published
from tests.relatives.refusals import MAKE, refused

BAD_SIZES: dict[str, tuple[str, Callable[[Path], object], dict[str, Any], str]] = {
    "no file says the heads": (
        "colake",
        lambda folder: None,
        {},
        r"--heads: required; CoLAKE's checkpoint does not say",
    ),
    "heads that do not divide": (
        "colake",
        lambda folder: None,
        {"heads": 5},
        r"num_attention_heads: must divide hidden_size 32, got 5",
    ),
    "another number of heads": (
        "ernie",
        lambda folder: None,
        {"heads": 2},
        r"--heads: .*ernie_config.json says 4, got 2",
    ),
    "no configuration": (
        "ernie",
        lambda folder: (folder / "ernie_config.json").unlink(),
        {},
        r"holds no ernie_config.json or bert_config.json or config.json, which says how many attention heads",
    ),
    "silent about the heads": (
        "dkplm",
        lambda folder: published.write_json(
            folder / "config.json", {k: v for k, v in published.bert_config().items() if k != "num_attention_heads"}
        ),
        {},
        r"config.json: does not say 'num_attention_heads'; say it with --heads",
    ),
    "silent about the activation": (
        "dkplm",
        lambda folder: published.write_json(
            folder / "config.json", {k: v for k, v in published.bert_config().items() if k != "hidden_act"}
        ),
        {},
        r"config.json: does not say 'hidden_act'$",
    ),
    "an activation that we have not": (
        "ernie",
        lambda folder: published.edit_json(folder / "ernie_config.json", hidden_act="swish"),
        {},
        r"ernie_config.json: hidden_act: must be one of gelu",
    ),
    "too many kinds of layers": (
        "ernie",
        lambda folder: published.edit_json(folder / "ernie_config.json", layer_types=["sim"] * 4),
        {},
        r"layer_types: expected a list of at most 3 kinds of layers",
    ),
    "configuration is a pointer": (
        "luke",
        lambda folder: (folder / "metadata.json").write_text("version https://git-lfs.github.com/spec/v1\n"),
        {},
        r"metadata.json: is a git-lfs pointer",
    ),
    "configuration is no object": (
        "luke",
        lambda folder: published.write_json(folder / "metadata.json", {"model_config": 3}),
        {},
        r"metadata.json: 'model_config' is no object of settings",
    ),
    "LUKE on BERT": (
        "luke",
        lambda folder: published.edit_json(
            folder / "metadata.json", model_config=published.luke_config() | {"bert_model_name": "bert-base-cased"}
        ),
        {},
        r"bert_model_name: only a LUKE that began from a RoBERTa is read, got 'bert-base-cased'",
    ),
}


@pytest.mark.parametrize("case", BAD_SIZES)
def test_bad_sizes(case: str, tmp_path: Path, tokenizer: Path) -> None:
    name, spoil, options, message = BAD_SIZES[case]
    MAKE[name](tmp_path / "published")
    spoil(tmp_path / "published")
    refused(tmp_path, name, message, tokenizer=None if name in ("ernie", "dkplm") else tokenizer, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"activation_fn": "relu"},
            r"model.pt: args: activation_fn: only gelu has a place in a plain RoBERTa, got 'relu'",
        ),
        ({"encoder_layers": 12}, r"model.pt: args: encoder_layers 12 is not the tensors' 3"),
        ({"encoder_attention_heads": 7}, r"num_attention_heads: must divide hidden_size 32, got 7"),
        ({"encoder_attention_heads": "many"}, r"num_attention_heads: expected a int, got 'many'"),
    ],
)
def test_bad_arguments_of_fairseq(changes: dict[str, Any], message: str, tmp_path: Path, tokenizer: Path) -> None:
    published.kepler(tmp_path / "published", arguments=published.kepler_arguments(**changes))
    refused(tmp_path, "kepler", message, tokenizer=tokenizer)


def test_kepler_on_bert_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    tensors = published.kepler_tensors()
    name = "decoder.sentence_encoder.segment_embeddings.weight"
    published.kepler(tmp_path / "published", tensors | {name: torch.ones(2, 32)})
    refused(tmp_path, "kepler", rf"'{name}' is unknown in KEPLER's encoder", tokenizer=tokenizer)
