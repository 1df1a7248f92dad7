"""Folders that are no whole masked language model."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertForMaskedLM, BertModel

from tests.evaluation.lama.makers import BERT_VOCAB, bert_folder
from trelm_ds.errors import UserError
from trelm_ds.evaluation.hf_folder import load_masked_lm, load_tokenizer_of


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def without_head(folder: Path) -> None:
    BertModel(BertForMaskedLM.from_pretrained(folder).config).save_pretrained(folder)


def pickled_text(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_text("<html>not found</html>")


N = len(BERT_VOCAB)
BAD_MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda m: m.rename(m.with_name("moved")), r"model: holds no config.json"),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), r"transformers cannot load it"),
    "cut weights": (lambda m: (m / "model.safetensors").write_bytes(b"x" * 99), r"transformers cannot load it"),
    "lfs pointer": (
        lambda m: (m / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        r"model.safetensors: is a git-lfs pointer, not the file; run `git lfs pull`",
    ),
    "bin": (pickled_text, r"its weights are damaged, or hold more than tensors; fetch them again"),
    "absurd": (
        lambda m: (m / "config.json").write_text('{"model_type": "bert", "num_hidden_layers": 1000000000}'),
        r"config.json: num_hidden_layers: must be at least 1 and at most 10000",
    ),
    "no config": (lambda m: (m / "config.json").write_text("{"), r"config.json: cannot be read as JSON"),
    "blank line": (lambda m: append(m / "vocab.txt", "\nmore\n"), r"vocab.txt:\d+: is empty"),
    "no head": (without_head, r"has no weights for 'cls.predictions"),
    "larger tokenizer": (
        lambda m: append(m / "vocab.txt", "more\n"),
        rf"its tokenizer has {N + 1} tokens, its model {N}",
    ),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_models_are_named(case: str, tmp_path: Path) -> None:
    model = bert_folder(tmp_path / "model", ["paris"])
    spoil, message = BAD_MODELS[case]
    spoil(model)
    with pytest.raises(UserError, match=message) as caught:
        load_masked_lm(model)
    assert str(model) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_head_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = bert_folder(tmp_path, ["paris"])
    without_head(folder)
    with pytest.raises(UserError, match=r"has no weights for 'cls.predictions"):
        load_masked_lm(folder)
    assert "MISSING" not in capfd.readouterr().err


def test_models_are_loaded_in_float32(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path, ["paris"])
    BertForMaskedLM.from_pretrained(folder).to(torch.bfloat16).save_pretrained(folder)
    assert load_masked_lm(folder)[0].dtype == torch.float32


def test_a_tokenizer_needs_no_model(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "model", ["paris"])
    (folder / "config.json").unlink()
    assert len(load_tokenizer_of(folder)) == N
    (folder / "vocab.txt").unlink()
    for path in (folder, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=str(path)):
            load_tokenizer_of(path)


def test_weights_that_may_not_be_read_are_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, opened = bert_folder(tmp_path / "model"), Path.open

    def refuse(path: Path, *arguments: str, **more: str) -> object:
        if path.name == "model.safetensors":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *arguments, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=r"model\.safetensors"):
        load_masked_lm(model)
