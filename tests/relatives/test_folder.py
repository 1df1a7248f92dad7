"""The folder that is written: its tokenizer fits, and it is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.relatives import published
from tests.relatives.published import BERT, HEADS
from tests.relatives.refusals import refused
from trelm_ds.errors import UserError
from trelm_ds.relatives import convert


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


def test_what_another_process_has_written_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trelm_ds.relatives import folder

    def appear(_: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()

    published.ernie(tmp_path / "published")
    monkeypatch.setattr(folder, "fsync_tree", appear)
    with pytest.raises(UserError, match=r"out: cannot be written: .*Directory not empty"):
        convert("ernie", tmp_path / "published", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "published"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs"]
