"""`trelm convert`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.launch import real_trelm
from tests.relatives import published
from trelm_ds.cli import main
from trelm_ds.commands.convert import PROJECTS
from trelm_ds.relatives import RELATIVES


def test_the_command_offers_every_project() -> None:
    assert tuple(RELATIVES) == PROJECTS


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = published.roberta_tokenizer(tmp_path / "tokenizer")
    published.kepler(tmp_path / "kepler")
    out = tmp_path / "out"
    done = real_trelm("convert", "--from", "kepler", tmp_path / "kepler", out, "--tokenizer", tokenizer)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{out}: converted from {tmp_path / 'kepler'}"
    assert lines[1].startswith("kept: RoBERTa encoder of 3 layers, hidden size 32, 4 heads, 266 words, 20 positions")
    assert "left behind: relation embeddings 22 x 32" in lines
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "vocab.json", "merges.txt"}
    with pytest.raises(SystemExit) as caught:
        main(["convert", "--from", "kepler", str(tmp_path / "kepler"), str(out), "--tokenizer", str(tokenizer)])
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"trelm: error: {out}: exists; give a folder that does not exist yet\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--from", "bart"], "argument --from: invalid choice: 'bart'"),
        ([], "the following arguments are required: --from"),
        (["--from", "luke", "--heads", "0"], "--heads: must be at least 1, got 0"),
    ],
)
def test_wrong_options(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["convert", str(tmp_path), str(tmp_path / "out"), *options])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_names_from_a_file_cannot_act_on_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    tensors = published.ernie(tmp_path / "ernie")
    torch.save(tensors | {"\x1b[2Jhead": torch.ones(2)}, tmp_path / "ernie" / "pytorch_model.bin")
    with pytest.raises(SystemExit) as caught:
        main(["convert", "--from", "ernie", str(tmp_path / "ernie"), str(tmp_path / "out")])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "left behind: other tensors 2: \\x1b[2Jhead" in shown
    assert "\x1b" not in shown
