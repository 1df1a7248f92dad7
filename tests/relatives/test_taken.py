"""Names and shapes that are not a project's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.relatives import published
from tests.relatives.published import BERT, HEADS, Tensors
from tests.relatives.refusals import MAKE, WEIGHTS, refused
from trelm_ds.relatives import RELATIVES, convert


def edit(path: Path, change: Callable[[Tensors], object]) -> None:
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    torch.save(tensors, path)


@pytest.mark.parametrize("given", MAKE)
@pytest.mark.parametrize("claimed", MAKE)
def test_a_checkpoint_of_another_project_is_told(claimed: str, given: str, tmp_path: Path, tokenizer: Path) -> None:
    if claimed == given or given == "dkplm":  # as published DKPLM is a BERT with a BERT's names
        return
    MAKE[given](tmp_path / "made")
    (tmp_path / "published").mkdir()
    (tmp_path / "made" / WEIGHTS[given]).rename(tmp_path / "published" / WEIGHTS[claimed])
    title = RELATIVES[given].title
    refused(tmp_path, claimed, rf"; its names are {title}'s: try --from {given}$", tokenizer=tokenizer)


def test_a_plain_checkpoint_is_told(tmp_path: Path, tokenizer: Path) -> None:
    published.dkplm(tmp_path / "published")
    (tmp_path / "published" / "pytorch_model.bin").rename(tmp_path / "published" / "model.bin")
    message = (
        r"model.bin: lacks 'roberta.embeddings.word_embeddings.weight', which CoLAKE's checkpoints have; its names are "
        r"those of a plain Hugging Face checkpoint, which needs no conversion$"
    )
    refused(tmp_path, "colake", message)


def test_names_that_nobody_has(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "published").mkdir()
    torch.save({"conv1.weight": torch.ones(2)}, tmp_path / "published" / "model.bin")
    refused(tmp_path, "colake", r"its first name is 'conv1.weight', which no known project has", tokenizer=tokenizer)


LAYER = "bert.encoder.layer.1."
BAD_TENSORS: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "one is missing": (
        lambda tensors: tensors.pop(f"{LAYER}output.dense.bias"),
        rf"lacks '{LAYER}output.dense.bias', which ERNIE's checkpoints have",
    ),
    "several are missing": (
        lambda tensors: [tensors.pop(f"{LAYER}output.{part}") for part in ("dense.bias", "dense.weight")],
        rf"lacks '{LAYER}output.dense.\w+' and 1 more",
    ),
    "part of the head": (
        lambda tensors: tensors.pop("cls.predictions.bias"),
        r"lacks 'cls.predictions.bias', which ERNIE's checkpoints have",
    ),
    "part of the pooler": (lambda tensors: tensors.pop("bert.pooler.dense.bias"), r"lacks 'bert.pooler.dense.bias'"),
    "shape": (
        lambda tensors: tensors.update({f"{LAYER}output.dense.weight": torch.ones(32, 9)}),
        rf"'{LAYER}output.dense.weight' has shape \[32, 9\], ernie_config.json says \[32, 48\]",
    ),
    "shape of a bias that is added": (
        lambda tensors: tensors.update({f"{LAYER}intermediate.dense_ent.bias": torch.ones(9)}),
        rf"'{LAYER}intermediate.dense_ent.bias' has shape \[9\], ernie_config.json says \[48\]",
    ),
    "type": (
        lambda tensors: tensors.update({f"{LAYER}output.dense.bias": torch.ones(32).long()}),
        rf"'{LAYER}output.dense.bias' is torch.int64; save it as fp32, fp16 or bf16",
    ),
    "unknown": (
        lambda tensors: tensors.update({f"{LAYER}adapter.weight": torch.ones(2)}),
        rf"'{LAYER}adapter.weight' is unknown in ERNIE's encoder",
    ),
    "another layer": (
        lambda tensors: tensors.update({"bert.encoder.layer.3.output.dense.bias": torch.ones(32)}),
        r"'bert.encoder.layer.3.output.dense.bias' is unknown in ERNIE's encoder",
    ),
    "untied": (
        lambda tensors: tensors.update({"cls.predictions.decoder.weight": torch.ones(len(BERT), 32)}),
        r"'cls.predictions.decoder.weight' differs from 'bert.embeddings.word_embeddings.weight'; only tied decoders",
    ),
    "no entity part where there should be one": (
        lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(LAYER) and "_ent" in name],
        r"ernie_config.json: layer_types says 'mix' for layer 1, which lacks a part for entities",
    ),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_bad_tensors(case: str, tmp_path: Path) -> None:
    published.ernie(tmp_path / "published")
    spoil, message = BAD_TENSORS[case]
    edit(tmp_path / "published" / "pytorch_model.bin", spoil)
    refused(tmp_path, "ernie", message)


def test_a_word_table_that_is_no_matrix(tmp_path: Path, tokenizer: Path) -> None:
    published.colake(tmp_path / "published")
    word = "roberta.embeddings.word_embeddings.weight"
    edit(tmp_path / "published" / "model.bin", lambda tensors: tensors.update({word: torch.ones(9)}))
    refused(tmp_path, "colake", rf"'{word}' has shape \[9\], a matrix was expected", tokenizer=tokenizer)


def test_first_berts_layer_norms_are_renamed(tmp_path: Path) -> None:
    published.ernie(tmp_path / "published")

    def old(tensors: Tensors) -> None:
        for name in list(tensors):
            if "LayerNorm." in name:
                renamed = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                    "LayerNorm.bias", "LayerNorm.beta"
                )
                tensors[renamed] = tensors.pop(name)

    edit(tmp_path / "published" / "pytorch_model.bin", old)
    convert("ernie", tmp_path / "published", tmp_path / "out")


def test_views_of_one_storage_are_written(tmp_path: Path, tokenizer: Path) -> None:
    """As they are saved where an optimizer has flattened the parameters."""
    tensors = published.colake(tmp_path / "published")
    flat = torch.cat([tensor.flatten() for tensor in tensors.values()])
    pieces = flat.split([tensor.numel() for tensor in tensors.values()])
    views = {name: piece.view(tensors[name].shape) for name, piece in zip(tensors, pieces, strict=True)}
    torch.save(views, tmp_path / "published" / "model.bin")
    convert("colake", tmp_path / "published", tmp_path / "out", tokenizer, heads=HEADS)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["lm_head.dense.weight"], tensors["lm_head.dense.weight"])
