"""The table, the plot and the files of a result."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.evaluation.lama.makers import Fact, bert_folder, evaluated, write_facts, write_lines
from trelm_ds.errors import UserError
from trelm_ds.evaluation import LamaResult, format_lama, plot_lama, write_lama


def sample_result(tmp_path: Path) -> LamaResult:
    model = bert_folder(tmp_path / "model", ["paris"])
    facts: dict[str, list[Fact]] = {
        "P1": [("ana", "paris", "often"), ("bob", "rome", "once")],
        "P2": [("ana", "old rome")],
    }
    write_lines(tmp_path / "lama/Squad/test.jsonl", [{"obj_label": "rome", "masked_sentences": ["in [MASK] ."]}])
    return evaluated(model, write_facts(tmp_path / "lama", facts))


def test_table(tmp_path: Path) -> None:
    text = format_lama(sample_result(tmp_path).summary)
    trex, squad, last = text.split("\n\n")
    rows = {tuple(line[:26].split()): line.split()[-7:] for line in trex.splitlines() if line[:1] in "Pgm"}
    # P@1, P@10, MRR, each with the majority object's, and facts; after paris, the other words tie by token.
    assert rows["P1", "label", "of", "P1"] == ["50.0", "50.0", "100.0", "100.0", "75.0", "75.0", "2"]
    assert rows["P2", "label", "of", "P2"] == ["-"] * 6 + ["0"]
    assert trex.splitlines()[-2].split()[-7:] == rows["P1", "label", "of", "P1"]  # the mean over all facts
    assert [line.split()[1:3] for line in trex.splitlines() if line.startswith("group")] == [
        ["tier:", "often"],
        ["tier:", "once"],
        ["name:", "uhn"],
    ]
    assert "name: uhn (string match only)" in trex
    assert "over 1 relations" in trex
    assert trex.splitlines()[-1] == "facts skipped: 1 object is several tokens"
    assert squad.splitlines()[0].startswith("SQuAD")
    assert squad.splitlines()[-1] == "facts skipped: none"
    assert last == "candidates: 27 tokens of the model's vocabulary"


def test_table_names_the_candidates(tmp_path: Path) -> None:
    summary = sample_result(tmp_path).summary
    for about, text in (
        ({"path": "a/words.txt", "common_with": []}, "words.txt"),
        ({"path": "a/words.txt", "common_with": ["b/roberta"]}, "words.txt, those shared with roberta"),
        ({"path": None, "common_with": ["b/roberta", "b/bert"]}, "the words shared with roberta and bert"),
    ):
        told = format_lama(summary | {"candidates": {"n_tokens": 3, **about}}).splitlines()[-1]
        assert told == f"candidates: 3 tokens of {text}"


def test_files(tmp_path: Path) -> None:
    result = sample_result(tmp_path)
    path = tmp_path / "new" / "lama.json"
    write_lama(result, path)
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written == result.summary | {"predictions": "lama.predictions.jsonl.gz"}
    packed = (path.parent / written["predictions"]).read_bytes()
    assert [json.loads(line) for line in gzip.decompress(packed).splitlines()] == result.predictions
    assert len(result.predictions) == 3
    write_lama(result, path)
    assert (path.parent / written["predictions"]).read_bytes() == packed
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["lama.json", "lama.predictions.jsonl.gz"]
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"lama.predictions.jsonl.gz: cannot be written"):
        write_lama(result, tmp_path / "file" / "lama.json")


def test_plot(tmp_path: Path) -> None:
    summary = sample_result(tmp_path).summary
    heights = []
    for parts in (summary["parts"], {"squad": summary["parts"]["squad"]}):
        plot_lama(summary | {"parts": parts, "model": "a model of 5 $_{$"}, tmp_path / "lama.png")
        png = (tmp_path / "lama.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        heights.append(int.from_bytes(png[20:24]))
    assert heights[0] > heights[1]  # T-REx's panels
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"lama.png: cannot be written"):
        plot_lama(summary, tmp_path / "file" / "lama.png")
