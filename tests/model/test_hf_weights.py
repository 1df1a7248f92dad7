"""Files of Hugging Face folders that are damaged, hostile, or not there at all: one line each."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.model.tiny_models import make_hf
from trelm_ds.errors import UserError
from trelm_ds.model import load_pretrained

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 440449768\n"


def pickled(folder: Path, content: Any = None) -> Path:
    """The weights, or something else, as pytorch_model.bin instead."""
    state = load_file(folder / "model.safetensors") if content is None else content
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def flipped(path: Path, seed: int = 0) -> None:
    data, draw = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(40):
        data[draw.randrange(min(4000, len(data)))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "lfs pointer": (lambda f: (f / "model.safetensors").write_text(POINTER), "is a git-lfs pointer, not the file"),
    "lfs pointer, bin": (lambda f: pickled(f).write_text(POINTER), "is a git-lfs pointer, not the file; run `git"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors: cannot be read"),
    "empty, bin": (lambda f: pickled(f).write_bytes(b""), "pytorch_model.bin: cannot be read as weights"),
    "huge header": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), "model.safetensors: cannot be read"),
    "cut, bin": (lambda f: os.truncate(pickled(f), 3000), "pytorch_model.bin: cannot be read as weights"),
    "text": (lambda f: pickled(f).write_text("<html>not found</html>"), "pytorch_model.bin: cannot be read as weights"),
    "whole numbers as names": (lambda f: pickled(f, {1: torch.ones(2)}), "expected tensors by name"),
    "a list": (lambda f: pickled(f, [torch.ones(2)]), "expected tensors by name"),
    "a number": (lambda f: pickled(f, {"weight": 3}), "expected names and tensors only"),
    "complex": (
        lambda f: pickled(f, {"bert.x": torch.ones(2, dtype=torch.complex64)}),
        "save the model's weights as real",
    ),
    "folder": (lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").mkdir()), "cannot be read"),
    "wide": (
        lambda f: edit(f, hidden_size=10**9),
        "hidden_size: must be at least 1 and at most 1000000, got 1000000000",
    ),
    "many words": (lambda f: edit(f, vocab_size=10**13), "vocab_size: must be at least 1 and at most"),
    "more words than weights": (lambda f: edit(f, vocab_size=90_000_000), "has shape .* config.json says .90000000"),
    "deep": (lambda f: edit(f, num_hidden_layers=10**9), "num_hidden_layers: must be at least 1 and at most 10000"),
    "deeper than its weights": (lambda f: edit(f, num_hidden_layers=300), "encoder.layer.3.* is missing"),
    "dropout 2": (lambda f: edit(f, hidden_dropout_prob=2), "hidden_dropout_prob: must be at least 0 and less than 1"),
    "dropout -1": (
        lambda f: edit(f, attention_probs_dropout_prob=-1),
        "attention_probs_dropout_prob: must be at least",
    ),
    "dropout nan": (lambda f: edit(f, hidden_dropout_prob=float("nan")), "hidden_dropout_prob: must be at least 0"),
    "eps": (lambda f: edit(f, layer_norm_eps=0.0), "layer_norm_eps: must be greater than 0"),
    "kind": (
        lambda f: edit(f, model_type=["bert"]),
        "model_type: must be one of bert, roberta, xlm-roberta, camembert, got",
    ),
    "digits": (
        lambda f: (f / "config.json").write_text('{"hidden_size": ' + "9" * 5000 + "}"),
        "cannot be read as JSON",
    ),
    "brackets": (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json: cannot be read as JSON"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_folder_is_one_line(case: str, tmp_path: Path) -> None:
    make_hf("bert").save_pretrained(tmp_path)
    spoil, message = SPOILT[case]
    spoil(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        load_pretrained(tmp_path)
    said = str(error.value)
    assert "\n" not in said
    assert len(said) < 500
    assert "weights_only" not in said  # torch's advice to unpickle whatever there is


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_flipped_bits_are_one_line_or_nothing(name: str, seed: int, tmp_path: Path) -> None:
    make_hf("bert").save_pretrained(tmp_path)
    flipped(pickled(tmp_path) if name == "pytorch_model.bin" else tmp_path / name, seed)
    said = ""
    try:
        load_pretrained(tmp_path)
    except UserError as error:
        said = str(error)
    assert "\n" not in said


def test_a_byte_order_mark_before_the_configuration(tmp_path: Path) -> None:
    make_hf("bert").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    load_pretrained(tmp_path)


def test_half_precision_is_read(tmp_path: Path) -> None:
    make_hf("bert").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    assert load_pretrained(tmp_path).head.bias.dtype == torch.float32


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pytorch_model.bin"])
def test_what_may_not_be_read_is_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    make_hf("bert").save_pretrained(tmp_path)
    if name == "pytorch_model.bin":
        pickled(tmp_path)

    look = builtins.open

    def fail(path: Any, *more: Any, **named: Any) -> Any:
        if str(path).endswith(name):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return look(path, *more, **named)

    monkeypatch.setattr(builtins, "open", fail)
    monkeypatch.setattr(io, "open", fail)
    with pytest.raises(UserError, match=f"{name}: cannot be read: Permission denied$"):
        load_pretrained(tmp_path)
