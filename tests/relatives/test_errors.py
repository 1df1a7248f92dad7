"""Whatever is wrong with a checkpoint is one line that names it; nothing is written and nothing is run."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.relatives import published
from tests.relatives.published import BERT, HEADS, Tensors
from trelm_ds.errors import UserError
from trelm_ds.relatives import RELATIVES, convert
from trelm_ds.relatives.reading import read_checkpoint

MAKE: dict[str, Callable[[Path], Tensors]] = {
    "kepler": published.kepler,
    "colake": published.colake,
    "ernie": published.ernie,
    "luke": published.luke,
    "dkplm": published.dkplm,
}
WEIGHTS = {name: relative.files[0] for name, relative in RELATIVES.items()}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return published.roberta_tokenizer(tmp_path / "tokenizer")


def refused(tmp_path: Path, name: str, message: str, **options: Any) -> str:
    """Convert `tmp_path`/published, expecting this error, one line of it, and nothing beside."""
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message) as caught:
        convert(name, tmp_path / "published", tmp_path / "deep" / "out", **options)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    return str(caught.value)


def edit(path: Path, change: Callable[[Tensors], object]) -> None:
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    torch.save(tensors, path)


# --- Files ---
class Runs:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("function", [os.system, eval, exec], ids=lambda function: function.__name__)
def test_a_pickle_that_runs_something_is_not_opened(
    function: Callable[..., Any], zipped: bool, tmp_path: Path, tokenizer: Path
) -> None:
    (tmp_path / "published").mkdir()
    trap = tmp_path / "trap"
    text = f"touch {trap}" if function is os.system else f"open({str(trap)!r}, 'w')"
    saved = {"model": {"weight": torch.ones(2)}, "args": Runs(function, text)}
    torch.save(saved, tmp_path / "published" / "model.pt", _use_new_zipfile_serialization=zipped)
    name = "posix.system" if function is os.system else function.__name__
    refused(tmp_path, "kepler", rf"model.pt: holds an object of class '{name}', and is not opened", tokenizer=tokenizer)
    assert not trap.exists()


def test_other_classes_are_named(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "published").mkdir()
    torch.save({"weight": Path("x")}, tmp_path / "published" / "model.bin")
    refused(tmp_path, "colake", r"model.bin: holds an object of class 'pathlib\.\w+'", tokenizer=tokenizer)


def test_an_argument_list_cannot_run_anything_either(tmp_path: Path, tokenizer: Path) -> None:
    tensors = published.kepler_tensors()
    arguments = published.kepler_arguments(user_dir=Runs(os.system, f"touch {tmp_path / 'trap'}"))
    published.kepler(tmp_path / "published", tensors, arguments)
    refused(tmp_path, "kepler", r"holds an object of class 'posix.system'", tokenizer=tokenizer)
    assert not (tmp_path / "trap").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def damage_zip(path: Path) -> None:
    """Spoil the pickle in the archive, whose end is whole."""
    with zipfile.ZipFile(path) as archive:
        member = next(item for item in archive.infolist() if item.filename.endswith("data.pkl"))
    content = bytearray(path.read_bytes())
    start = member.header_offset + 200
    content[start : start + 60] = b"\xff" * 60
    path.write_bytes(content)


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        r"is a git-lfs pointer, not the file; run `git lfs pull`",
    ),
    "web page": (lambda path: path.write_text("\n<!DOCTYPE html><html>"), r"is a web page"),
    "archive": (lambda path: path.write_bytes(b"\x1f\x8b\x08" + b"0" * 99), r"is an archive; unpack it"),
    "text": (lambda path: path.write_text("weights"), r"cannot be read as weights; it is damaged, or no file of"),
    "empty": (lambda path: path.write_bytes(b""), r"cannot be read as weights"),
    "cut": (cut, r"cannot be read as weights; it is damaged"),
    "damaged zip": (damage_zip, r"cannot be read as weights; it is damaged"),
    "a list": (lambda path: torch.save([torch.ones(2)], path), r"holds a list where tensors by name were expected"),
    "numbers": (lambda path: torch.save({"epoch": 3}, path), r"'epoch' is no tensor"),
    "nothing": (lambda path: torch.save({}, path), r"holds no tensors"),
    "missing": (
        lambda path: path.unlink(),
        r"published: holds no model.bin, as CoLAKE calls its weights; give the file",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(case: str, tmp_path: Path, tokenizer: Path) -> None:
    published.colake(tmp_path / "published")
    spoil, message = BAD_FILES[case]
    spoil(tmp_path / "published" / "model.bin")
    assert str(tmp_path / "published") in refused(tmp_path, "colake", message, tokenizer=tokenizer, heads=HEADS)


def test_a_file_that_is_missing(tmp_path: Path, tokenizer: Path) -> None:
    refused(tmp_path, "colake", r"published does not exist; give the file of weights", tokenizer=tokenizer)


def test_a_zip_file_is_mapped_not_read(tmp_path: Path) -> None:
    """So a table of gigabytes that is left behind is never read."""
    published.colake(tmp_path)
    checkpoint = read_checkpoint(tmp_path / "model.bin")
    assert str(tmp_path / "model.bin") in Path("/proc/self/maps").read_text()
    assert checkpoint.tensors


# --- Names and shapes ---
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


# --- Sizes ---
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


# --- Tokenizers ---
def test_tokenizer_is_required(tmp_path: Path) -> None:
    published.colake(tmp_path / "published")
    refused(
        tmp_path,
        "colake",
        r"--tokenizer: required, as .*published holds none; give the folder of the tokenizer: roberta-base's",
    )


def test_tokenizer_folder_without_one(tmp_path: Path) -> None:
    published.colake(tmp_path / "published")
    refused(tmp_path, "colake", r"--tokenizer: .*published holds no vocab.txt", tokenizer=tmp_path / "published")


def test_tokenizer_of_another_size(tmp_path: Path) -> None:
    published.colake(tmp_path / "published")
    published.bert_vocabulary(tmp_path / "other")
    message = rf"--tokenizer: .*other has {len(BERT)} tokens, the model {len(published.ROBERTA)}; give the tokenizer"
    refused(tmp_path, "colake", message, tokenizer=tmp_path / "other", heads=HEADS)


def test_tokenizer_with_other_special_tokens(tmp_path: Path, tokenizer: Path) -> None:
    published.colake(tmp_path / "published")
    vocabulary = (tokenizer / "vocab.json").read_text(encoding="utf-8")
    swapped = vocabulary.replace('"<pad>": 1', '"<pad>": X').replace('"</s>": 2', '"</s>": 1').replace("X", "2", 1)
    (tokenizer / "vocab.json").write_text(swapped, encoding="utf-8")
    message = r"--tokenizer: .*tokenizer: its pad token has id 2, the model's is 1"
    refused(tmp_path, "colake", message, tokenizer=tokenizer, heads=HEADS)


def test_tokenizer_in_another_order_than_fairseqs_dictionary(tmp_path: Path, tokenizer: Path) -> None:
    published.kepler(tmp_path / "published")
    lines = (tmp_path / "published" / "dict.txt").read_text().splitlines()
    lines[6], lines[9] = lines[9], lines[6]
    (tmp_path / "published" / "dict.txt").write_text("\n".join(lines) + "\n\n")
    refused(tmp_path, "kepler", r"dict.txt:7: id 10 is '.+' there, '.+' in --tokenizer", tokenizer=tokenizer)


def test_words_without_tokens_are_counted(tmp_path: Path, tokenizer: Path) -> None:
    published.ernie(tmp_path / "published")
    vocabulary = tmp_path / "published" / "vocab.txt"
    vocabulary.write_text("".join(f"{token}\n" for token in BERT[:-2]), encoding="utf-8")
    report = convert("ernie", tmp_path / "published", tmp_path / "out")
    assert any(line.startswith("2 rows of the word embeddings have no token") for line in report.notes)


# --- The folder ---
def test_out_that_exists(tmp_path: Path) -> None:
    published.ernie(tmp_path / "published")
    (tmp_path / "out").mkdir()
    convert("ernie", tmp_path / "published", tmp_path / "out")  # empty: may be there
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    with pytest.raises(UserError, match=r"out: exists; give a folder that does not exist yet"):
        convert("ernie", tmp_path / "published", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before


def test_out_in_a_place_that_cannot_be(tmp_path: Path) -> None:
    published.ernie(tmp_path / "published")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/out: cannot be created: Not a directory"):
        convert("ernie", tmp_path / "published", tmp_path / "file" / "out")


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    from trelm_ds.relatives import folder

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    published.ernie(tmp_path / "published")
    monkeypatch.setattr(folder, "save_file", full)
    refused(tmp_path, "ernie", r"out: cannot be written: I/O error: No space left on device")
