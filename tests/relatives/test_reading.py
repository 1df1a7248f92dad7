"""Files that are no checkpoints, or more than that: one line says which, nothing is written and nothing is run."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.relatives import published
from tests.relatives.published import HEADS
from tests.relatives.refusals import refused
from trelm_ds.relatives.reading import read_checkpoint


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
    refused(tmp_path, "colake", r"published: does not exist; give the file of weights", tokenizer=tokenizer)


def test_a_zip_file_is_mapped_not_read(tmp_path: Path) -> None:
    """So a table of gigabytes that is left behind is never read."""
    published.colake(tmp_path)
    checkpoint = read_checkpoint(tmp_path / "model.bin")
    assert str(tmp_path / "model.bin") in Path("/proc/self/maps").read_text()
    assert checkpoint.tensors
