"""Hugging Face's names and shapes, and checkpoints that nearly have them."""

from __future__ import annotations

from torch import Tensor

from trelm_ds.model import EncoderConfig, hf_names, hf_shapes
from trelm_ds.relatives.taken import Taken


def folder_shapes(config: EncoderConfig) -> dict[str, list[int]]:
    """Give the shape of every tensor that a folder of this model may hold, pooler included."""
    size = config.hidden_size
    pooler = f"{config.architecture}.pooler.dense."
    return hf_shapes(config) | {f"{pooler}weight": [size, size], f"{pooler}bias": [size]}


def encoder_targets(config: EncoderConfig) -> list[str]:
    return [name for ours, theirs in hf_names(config).items() if ours.startswith("encoder.") for name in theirs]


def head_targets(config: EncoderConfig) -> list[str]:
    return [name for ours, theirs in hf_names(config).items() if ours.startswith("head.") for name in theirs]


def take_like_hf(taken: Taken, config: EncoderConfig, base: str, head: str, place: str) -> dict[str, Tensor]:
    """Take encoder, MLM head and pooler out of a checkpoint that has Hugging Face's names behind other prefixes.

    Args:
        taken: the checkpoint.
        config: sizes.
        base: what stands in place of "bert." or "roberta.".
        head: what stands in front of the head's names.
        place: what says the sizes, for messages.
    """
    own = f"{config.architecture}."
    names = {target: base + target.removeprefix(own) for target in encoder_targets(config)}
    names |= _head_names(taken, config, head, names[f"{own}embeddings.word_embeddings.weight"])
    pooler = {f"{own}pooler.dense.{kind}": f"{base}pooler.dense.{kind}" for kind in ("weight", "bias")}
    if any(name in taken for name in pooler.values()):
        names |= pooler
    taken.ignore(r"(^|\.)embeddings\.(position_ids|token_type_ids)$")
    taken.require(names.values())  # before the shapes, which cost time where a file claims ten thousand layers
    return taken.take(names, folder_shapes(config), place)


def _head_names(taken: Taken, config: EncoderConfig, prefix: str, word: str) -> dict[str, str]:
    """Name the MLM head's tensors, if there are any; leave out the decoder's copies of word embeddings and bias."""
    names = {target: prefix + target for target in head_targets(config)}
    if not any(name in taken for name in names.values()):
        return {}
    part = "cls.predictions." if config.architecture == "bert" else "lm_head."
    bias, copy = f"{prefix}{part}bias", f"{prefix}{part}decoder.bias"
    if bias not in taken and copy in taken:
        names[f"{part}bias"] = copy
    taken.drop_copy(copy, bias)
    taken.drop_copy(f"{prefix}{part}decoder.weight", word)
    return names
