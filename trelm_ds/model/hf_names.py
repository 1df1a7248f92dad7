"""The names that Hugging Face gives to our parameters, and the forms they have there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trelm_ds.model.encoder_config import EncoderConfig

_EMBEDDINGS = {
    "word.weight": "word_embeddings.weight",
    "position.weight": "position_embeddings.weight",
    "token_type.weight": "token_type_embeddings.weight",
    "norm.weight": "LayerNorm.weight",
    "norm.bias": "LayerNorm.bias",
}
_QUERY_KEY_VALUE = ("attention.self.query", "attention.self.key", "attention.self.value")
_LAYER = {
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward_norm": "output.LayerNorm",
}
_FEED_FORWARD = {
    "keys": "intermediate.dense.weight",
    "key_bias": "intermediate.dense.bias",
    "values": "output.dense.weight",
    "value_bias": "output.dense.bias",
}
_HEAD = {
    "bert": {"dense": "cls.predictions.transform.dense", "norm": "cls.predictions.transform.LayerNorm"},
    "roberta": {"dense": "lm_head.dense", "norm": "lm_head.layer_norm"},
}
HEAD_PREFIX = {"bert": "cls.predictions.", "roberta": "lm_head."}


def hf_names(config: EncoderConfig) -> dict[str, tuple[str, ...]]:
    """Map every parameter's name to its names in the Hugging Face checkpoint, three for queries, keys and values."""
    several = {}
    for i in range(config.num_hidden_layers):
        for kind in ("weight", "bias"):
            layer = f"{config.architecture}.encoder.layer.{i}."
            theirs = tuple(f"{layer}{name}.{kind}" for name in _QUERY_KEY_VALUE)
            several[f"encoder.layers.{i}.attention.qkv.{kind}"] = theirs
    return {ours: (theirs,) for ours, theirs in _single_names(config).items()} | several


def _single_names(config: EncoderConfig) -> dict[str, str]:
    base = f"{config.architecture}."
    names = {f"encoder.embeddings.{ours}": f"{base}embeddings.{theirs}" for ours, theirs in _EMBEDDINGS.items()}
    for i in range(config.num_hidden_layers):
        ours_layer, theirs_layer = f"encoder.layers.{i}.", f"{base}encoder.layer.{i}."
        for ours, theirs in _LAYER.items():
            names |= {f"{ours_layer}{ours}.{kind}": f"{theirs_layer}{theirs}.{kind}" for kind in ("weight", "bias")}
        names |= {f"{ours_layer}feed_forward.{ours}": theirs_layer + theirs for ours, theirs in _FEED_FORWARD.items()}
    for ours, theirs in _HEAD[config.architecture].items():
        names |= {f"head.{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}
    return names | {"head.bias": f"{HEAD_PREFIX[config.architecture]}bias"}


def pooler_names(config: EncoderConfig) -> dict[str, str]:
    """Map the names of a `Pooler`'s parameters to those in the Hugging Face checkpoint."""
    return {f"dense.{kind}": f"{config.architecture}.pooler.dense.{kind}" for kind in ("weight", "bias")}


def to_hf(ours: str, tensor: Tensor, theirs: Sequence[str]) -> dict[str, Tensor]:
    """Give a parameter the names and forms of the Hugging Face checkpoint; views of it.

    Args:
        ours: its name.
        tensor: itself, or anything of its shape.
        theirs: its names there (`hf_names`).
    """
    return dict(zip(theirs, _transposed(ours, tensor).chunk(len(theirs)), strict=True))


def from_hf(ours: str, tensors: Sequence[Tensor]) -> Tensor:
    """Put the tensors of a Hugging Face checkpoint together to the parameter `ours`, in the order of `hf_names`."""
    return _transposed(ours, tensors[0] if len(tensors) == 1 else torch.cat([*tensors]))


def _transposed(ours: str, tensor: Tensor) -> Tensor:
    """Turn a tensor into the other form: the feed-forward values are [F, D] here and [D, F] there."""
    return tensor.t() if ours.endswith(".feed_forward.values") else tensor
