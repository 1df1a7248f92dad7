"""Tokenizers as they lie in folders: alone or with settings, cased or not, saved by any editor."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from trelm_ds.corpus import load_tokenizer
from trelm_ds.errors import UserError

SPECIALS = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [f"{mark}{letter}" for letter in "abdefinrsty" for mark in ("", "##")]
UNCASED = [*SPECIALS, *LETTERS, "is", "berlin", "cafe"]
CASED = [*UNCASED, "Berlin", "café"]
TEXT = "Berlin is café"


def write(folder: Path, vocabulary: Iterable[str], **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def backend(vocabulary: list[str], lowercase: bool) -> Tokenizer:
    numbered = {token: number for number, token in enumerate(vocabulary)}
    core = Tokenizer(models.WordPiece(numbered, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return core


@pytest.mark.parametrize(
    ("vocabulary", "settings", "expected", "said"),
    [
        (UNCASED, {}, ["berlin", "is", "cafe"], "has no capitals: text is lower-cased"),
        (CASED, {}, ["Berlin", "is", "café"], "has capitals: taken as cased"),
        (CASED, {"model_max_length": 512}, ["Berlin", "is", "café"], "has capitals: taken as cased"),
        (CASED, {"tokenizer_class": "BertTokenizer"}, ["Berlin", "is", "café"], "has capitals: taken as cased"),
        (CASED, {"do_lower_case": False}, ["Berlin", "is", "café"], ""),
        (CASED, {"do_lower_case": True}, ["berlin", "is", "cafe"], "warning: --tokenizer: "),
        ([*UNCASED, "café"], {}, ["berlin", "is", "café"], "has no capitals"),
        (
            [*UNCASED, "NUM", *(f"berlin{number}" for number in range(100))],
            {},
            ["berlin", "is", "cafe"],
            "has no capitals but in 1 tokens, such as 'NUM': text is lower-cased",
        ),
        ([*UNCASED, "café"], {"strip_accents": True}, ["berlin", "is", "cafe"], "has no capitals"),
    ],
)
def test_a_vocabulary_says_whether_it_is_cased(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    vocabulary: list[str],
    settings: dict[str, Any],
    expected: list[str],
    said: str,
) -> None:
    assert load_tokenizer(write(tmp_path / "t", vocabulary, **settings)).tokenize(TEXT) == expected
    heard = capsys.readouterr().err
    assert said in heard
    assert bool(heard) == bool(said)


@pytest.mark.parametrize("other", ["config.json", "special_tokens_map.json"])
def test_old_files_beside_a_cased_vocabulary_change_nothing(tmp_path: Path, other: str) -> None:
    folder = write(tmp_path / "t", CASED)
    content = {"model_type": "bert", "hidden_size": 8} if other == "config.json" else {"unk_token": "[UNK]"}
    (folder / other).write_text(json.dumps(content))
    assert load_tokenizer(folder).tokenize(TEXT) == ["Berlin", "is", "café"]


@pytest.mark.parametrize(
    "settings",
    [
        None,
        {},
        {"do_lower_case": True, "model_max_length": 512},
        {"tokenizer_class": "BertTokenizer"},
        {"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": {"content": "[MASK]", "lstrip": True}},
    ],
)
@pytest.mark.parametrize("model", [False, True])
@pytest.mark.parametrize("cased", [False, True])
def test_tokenizer_json_is_taken_as_it_stands(
    tmp_path: Path, settings: dict[str, Any] | None, model: bool, cased: bool
) -> None:
    backend(CASED if cased else UNCASED, lowercase=not cased).save(str(tmp_path / "tokenizer.json"))
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    if model:
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    loaded = load_tokenizer(tmp_path)
    assert loaded.tokenize(TEXT) == (["Berlin", "is", "café"] if cased else ["berlin", "is", "cafe"])
    ids = [loaded.pad_token_id, loaded.unk_token_id, loaded.cls_token_id, loaded.sep_token_id, loaded.mask_token_id]
    assert ids == [0, 2, 3, 4, 5]
    loaded.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert (again.tokenize(TEXT), again.mask_token_id) == (loaded.tokenize(TEXT), 5)


def test_files_of_other_editors(tmp_path: Path) -> None:
    """A byte-order mark, Windows' line ends, empty lines at the end."""
    folder = write(tmp_path / "t", UNCASED)
    (folder / "vocab.txt").write_bytes("\ufeff".encode() + "\r\n".join([*UNCASED, "", "", ""]).encode())
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}', encoding="utf-8-sig")
    loaded = load_tokenizer(folder)
    assert (loaded.pad_token_id, len(loaded)) == (0, len(UNCASED))
    assert loaded.tokenize(TEXT) == ["berlin", "is", "cafe"]


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ([*UNCASED[:9], "", *UNCASED[9:]], "vocab.txt:10: is empty; every line is a token"),
        ([*UNCASED, "is"], r"vocab.txt:32: 'is' stands on line 29 already"),
        ([token for token in UNCASED if token != "[MASK]"], r"vocab.txt lacks \[MASK\]"),
    ],
)
def test_a_vocabulary_that_is_wrong_is_refused_by_line(tmp_path: Path, vocabulary: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_tokenizer(write(tmp_path / "t", vocabulary))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": "{"}, "tokenizer.json cannot be read: "),
        ({"tokenizer.json": "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"}, "is a git-lfs pointer"),
        ({"vocab.txt": "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"}, "vocab.txt: is a git-lfs"),
        ({"vocab.txt": "", "tokenizer_config.json": '{"do_lower_case": "false"}'}, "'do_lower_case' must be true or"),
        (
            {"vocab.txt": "", "tokenizer_config.json": '{"strip_accents": "no"}'},
            "'strip_accents' must be true or false",
        ),
        ({"vocab.txt": "", "tokenizer_config.json": '{"tokenizer_class": ["x"]}'}, "'tokenizer_class' must be a name"),
        ({"vocab.json": "[1]", "merges.txt": ""}, "vocab.json cannot be read: expected an object"),
        ({"vocab.json": '{"a": 0, "a": 1}', "merges.txt": ""}, "'a' stands twice"),
        ({"vocab.txt": "", "tokenizer_config.json": "[1]"}, "tokenizer_config.json:1: expected an object"),
        ({"vocab.txt": "", "tokenizer_config.json": "{"}, "tokenizer_config.json:1: not valid JSON"),
        ({"vocab.txt": ""}, r"vocab.txt lacks \[PAD\]"),
        ({"vocab.json": "{}"}, "cannot be read: "),
        ({}, "holds no vocab.txt"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_a_class_that_does_not_read_the_vocabulary_is_refused(tmp_path: Path) -> None:
    """The library would go on with the five special tokens alone."""
    folder = write(tmp_path / "t", CASED, tokenizer_class="RobertaTokenizer")
    with pytest.raises(UserError, match=r"vocab.txt is not what a RobertaTokenizer reads; correct tokenizer_class"):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["added_tokens.json", "tokenizer_config.json"])
def test_tokens_added_to_a_vocabulary_are_tokens(tmp_path: Path, name: str) -> None:
    folder, new = write(tmp_path / "t", CASED), len(CASED)
    content = {"[NEW]": new} if name.startswith("added") else {"added_tokens_decoder": {new: {"content": "[NEW]"}}}
    (folder / name).write_text(json.dumps(content))
    loaded = load_tokenizer(folder)
    assert loaded.tokenize("Berlin [NEW] café") == ["Berlin", "[NEW]", "café"]
    assert len(loaded) == new + 1


def byte_pairs(folder: Path, **changed: Any) -> Path:
    """A byte-level vocabulary of the single bytes and "is"."""
    letters = sorted(bytes_to_unicode().values())
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters, "is", *(f"a{letter}" for letter in letters)]
    content = {
        "vocab.json": json.dumps({token: number for number, token in enumerate(tokens)}),
        "merges.txt": "#version: 0.2\ni s\n" + "".join(f"a {letter}\n" for letter in letters),
    } | {name.replace("_", "."): text for name, text in changed.items()}
    for name, text in content.items():
        (folder / name).write_bytes(text.encode())
    return folder


@pytest.mark.parametrize("model", [False, True])
@pytest.mark.parametrize("untidy", ["", "\ufeff", "\n\n"])
def test_byte_pairs_of_any_editor(tmp_path: Path, untidy: str, model: bool) -> None:
    byte_pairs(tmp_path)
    if model:
        (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    for name in ("vocab.json", "merges.txt"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(untidy + text if untidy == "\ufeff" else text + untidy)
    loaded = load_tokenizer(tmp_path)
    assert loaded.tokenize("is it") == ["is", "Ġ", "i", "t"]
    assert (len(loaded), loaded.mask_token_id) == (5 + 256 + 1 + 256, 4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"merges_txt": ""}, "merges.txt is cut off: nothing makes 262 tokens"),
        ({"config_json": '{"model_type": "bert"}'}, "vocab.json is not what a BertTokenizer reads"),
    ],
)
def test_byte_pairs_that_would_train_something_else(tmp_path: Path, changed: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_tokenizer(byte_pairs(tmp_path, **changed))


def test_two_tokens_with_one_number(tmp_path: Path) -> None:
    vocabulary = json.loads((byte_pairs(tmp_path) / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary | {"is": 0}))
    with pytest.raises(UserError, match="'<s>' and 'is' have the same number 0"):
        load_tokenizer(tmp_path)


def test_tokenizer_json_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(backend(CASED, lowercase=False).to_str(), encoding="utf-8-sig")
    assert load_tokenizer(tmp_path).tokenize(TEXT) == ["Berlin", "is", "café"]


def test_a_vocabulary_without_its_unknown_token(tmp_path: Path) -> None:
    vocabulary = [token for token in UNCASED if token != "[UNK]"]
    backend(vocabulary, lowercase=True).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"unk_token": "[PAD]"}')
    with pytest.raises(UserError, match=r"its vocabulary lacks \[UNK\], the token of unknown words"):
        load_tokenizer(tmp_path)


def test_published_vocabularies(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bert = load_tokenizer(shared_data / "tokenizers" / "bert-base-uncased")
    assert bert.tokenize("Müller's café") == ["muller", "'", "s", "cafe"]
    assert "has no capitals" in capsys.readouterr().err
    roberta = load_tokenizer(shared_data / "tokenizers" / "roberta-base")
    assert roberta.tokenize("Berlin is") == ["Ber", "lin", "Ġis"]
