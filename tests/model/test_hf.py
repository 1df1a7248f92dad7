"""Hugging Face folders in and out."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertForPreTraining,
    BertModel,
    BertTokenizer,
    PreTrainedModel,
)

from tests.model.tiny_models import make_documents, make_hf, pack
from trelm_ds.errors import UserError
from trelm_ds.model import MaskedLanguageModel, load_pretrained, save_pretrained

Pair = tuple[PreTrainedModel, MaskedLanguageModel]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n", encoding="utf-8")
    (folder / "notes.md").write_text("not a tokenizer file", encoding="utf-8")
    return folder


def assert_same_weights(first: MaskedLanguageModel, second: MaskedLanguageModel) -> None:
    left, right = first.state_dict(), second.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def test_export_is_read_by_transformers(pair: Pair, tmp_path: Path, tokenizer: Path) -> None:
    hf, ours = pair
    save_pretrained(ours, ours.config, tmp_path / "out", tokenizer)
    again, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(again) is type(hf)
    assert not any(info.values()), info
    ids = make_documents([12])[0][None]
    with torch.no_grad():
        assert torch.equal(again.eval()(input_ids=ids).logits, hf(input_ids=ids).logits)
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["config.json", "model.safetensors", "vocab.txt"]
    assert not list(tmp_path.glob(".out*"))


def test_the_exported_tokenizer_cuts_at_the_models_length(pair: Pair, tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword\n", encoding="utf-8")
    BertTokenizer(str(vocabulary)).save_pretrained(tmp_path / "tokenizer")
    ours = pair[1]
    save_pretrained(ours, ours.config, tmp_path / "out", tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("word " * 100, truncation=True, return_tensors="pt")["input_ids"]
    assert ids.shape == (1, ours.config.max_position_embeddings)
    AutoModelForMaskedLM.from_pretrained(tmp_path / "out")(input_ids=ids)  # RoBERTa counts two positions more


def test_save_then_load_is_bit_identical(pair: Pair, tmp_path: Path) -> None:
    ours = pair[1]
    save_pretrained(ours.state_dict(), ours.config, tmp_path / "out", None)
    again = load_pretrained(tmp_path / "out")
    assert again.config == ours.config
    assert_same_weights(again, ours)
    assert again.encoder.layers[0].feed_forward.values.is_contiguous()


def test_others_may_read_an_export_where_they_may_read_a_file(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    save_pretrained(pair[1], pair[1].config, tmp_path / "model", None)
    modes = {path.stat().st_mode for path in (tmp_path / "plain", *(tmp_path / "model").iterdir())}
    assert len(modes) == 1


def test_export_replaces_only_exports(pair: Pair, tmp_path: Path, tokenizer: Path) -> None:
    ours, out = pair[1], tmp_path / "out"
    out.mkdir()
    save_pretrained(ours, ours.config, out, tokenizer)
    with torch.no_grad():
        ours.head.bias.add_(1)
    save_pretrained(ours, ours.config, out, out)  # the tokenizer may come from the folder that is replaced
    assert_same_weights(load_pretrained(out), ours)
    assert (out / "vocab.txt").exists()
    assert not list(tmp_path.glob(".out*"))

    (out / "thesis.tex").write_text("precious", encoding="utf-8")
    with pytest.raises(UserError, match=r"out: holds 'thesis.tex'; give an empty folder"):
        save_pretrained(ours, ours.config, out, None)
    assert (out / "thesis.tex").read_text(encoding="utf-8") == "precious"
    with pytest.raises(UserError, match="hf: holds files that are no earlier export"):
        save_pretrained(ours, ours.config, tmp_path / "hf", None)


def test_a_failed_export_leaves_nothing(pair: Pair, tmp_path: Path) -> None:
    ours = pair[1]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no tokenizer"):
        save_pretrained(ours, ours.config, tmp_path / "out", tmp_path / "empty")
    state = {name: tensor for name, tensor in ours.state_dict().items() if name != "head.bias"}
    with pytest.raises(ValueError, match=r"'head\.bias' is missing"):
        save_pretrained(state, ours.config, tmp_path / "out", None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "hf"]


def test_other_forms_of_the_weights(pair: Pair, tmp_path: Path) -> None:
    hf, ours = pair
    folder = tmp_path / "hf"
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    old_names = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in state.items()
    }
    torch.save(old_names, folder / "pytorch_model.bin")
    assert_same_weights(load_pretrained(folder), ours)

    (folder / "pytorch_model.bin").unlink()
    hf.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert not (folder / "model.safetensors").exists()
    assert_same_weights(load_pretrained(folder), ours)


def test_bare_encoder_gets_a_fresh_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hf = make_hf("bert")
    encoder = BertModel(hf.config)
    encoder.load_state_dict(hf.bert.state_dict(), strict=False)
    encoder.eval().save_pretrained(tmp_path)
    with caplog.at_level(logging.DEBUG, "trelm_ds"):
        ours = load_pretrained(tmp_path).eval()
    warning, debug = ([r.message for r in caplog.records if r.levelname == level] for level in ("WARNING", "DEBUG"))
    assert len(warning) == 1
    assert "cls.predictions.transform.dense.weight" in warning[0]
    assert len(debug) == 1
    assert "bert.pooler.dense.weight" in debug[0]
    document = make_documents([9])
    with torch.no_grad():
        expected = encoder(input_ids=document[0][None]).last_hidden_state[0]
        torch.testing.assert_close(ours.encoder(*pack(document)), expected, atol=1e-5, rtol=0)


def test_pooler_and_next_sentence_head_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(2)
    BertForPreTraining(make_hf("bert").config).save_pretrained(tmp_path)
    with caplog.at_level(logging.DEBUG, "trelm_ds"):
        load_pretrained(tmp_path)
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert "cls.seq_relationship.weight" in caplog.text


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), r"config.json does not exist; give a Hugging Face folder"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), r"config.json: cannot be read as JSON"),
    "other model": (lambda f: edit_config(f, model_type="t5"), r"config.json: model_type: must be one of"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"hf: holds neither model.safetensors"),
    "cut weights": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), r"model.safetensors: cannot be read"),
    "missing": (
        lambda f: edit_weights(f, lambda s: s.pop("bert.encoder.layer.1.output.dense.bias")),
        r"tensor 'bert.encoder.layer.1.output.dense.bias' is missing",
    ),
    "part of the head": (
        lambda f: edit_weights(f, lambda s: s.pop("cls.predictions.bias")),
        r"tensor 'cls.predictions.bias' is missing",
    ),
    "unknown": (
        lambda f: edit_weights(f, lambda s: s.update({"classifier.weight": torch.ones(2)})),
        r"tensor 'classifier.weight' is not part of a BertForMaskedLM",
    ),
    "shape": (
        lambda f: edit_config(f, intermediate_size=64),
        r"tensor 'bert.encoder.layer.0.intermediate.dense.weight' has shape \[56, 32\], config.json says \[64, 32\]",
    ),
    "untied": (
        lambda f: edit_weights(f, lambda s: s.update({"cls.predictions.decoder.weight": torch.ones(97, 32)})),
        r"'cls.predictions.decoder.weight' differs from 'bert.embeddings.word_embeddings.weight'",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folders_are_named(case: str, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    make_hf("bert").save_pretrained(folder)
    spoil, message = BAD_FOLDERS[case]
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_pretrained(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    make_hf("bert").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"weight": Path("x")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin: cannot be read as weights"):
        load_pretrained(tmp_path)
