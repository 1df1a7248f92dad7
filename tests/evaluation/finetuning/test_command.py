"""`trelm evaluate typing | relation | glue`, the real command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.launch import forked_ranks, trelm
from tests.evaluation.tiny_tasks import write_model

QUICK = ("--seeds", 1, "--epochs", 1, "--no-tracking")


def test_a_task_from_the_command_line(tiny_tasks: Path, tmp_path: Path) -> None:
    command = (
        "evaluate",
        "glue",
        "--model",
        tiny_tasks / "bare",
        "--data",
        tiny_tasks / "glue",
        "--tasks",
        "CoLA",
        "mrpc",
    )
    done = trelm(*command, "--out", tmp_path / "glue.json", "--seeds", 1, "--epochs", 1)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "glue.json").read_text())
    assert list(result["tasks"]) == ["cola", "mrpc"]
    assert "of 2 of the nine numbers" in done.stdout
    assert done.stdout.endswith(f"{tmp_path}/glue.json and {tmp_path}/glue.png written\n")
    assert "cola lr 2e-05 seed 1: 1/1 in" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == [
        *("glue.json", "glue.png", "glue.predictions.jsonl.gz", "glue.runs", "mlflow.db")
    ]


def test_ranks_of_a_launcher(tiny_tasks: Path, tmp_path: Path) -> None:
    command = ("evaluate", "typing", "--model", tiny_tasks / "bert", "--data", tiny_tasks / "typing")
    done = forked_ranks(2, *command, "--out", tmp_path / "typing.json", *QUICK)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written") == 1
    record = json.loads((tmp_path / "typing.runs" / "typing-lr2e-05-seed1" / "record.json").read_text())
    assert record["identity"]["processes"] == 2


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("typing", {"--model": "nowhere"}, "nowhere/config.json does not exist"),
        ("typing", {"--data": "nowhere"}, "--data: nowhere is not a folder; give a folder with train.json"),
        ("typing", {"--out": "{tmp}/nowhere/x.json"}, "--out: give a file such as typing.json in an existing folder"),
        ("typing", {"--seeds": "0"}, "--seeds: must be at least 1, got 0"),
        ("typing", {"--lr": "2"}, "--lr: must be greater than 0 and less than 1, got 2"),
        ("typing", {"--epochs": "0"}, "--epochs: must be at least 1, got 0"),
        ("typing", {"--batch-size": "0"}, "--batch-size: must be at least 1, got 0"),
        ("typing", {"--early-stopping": "-1"}, "--early-stopping: must be at least 0, got -1"),
        ("typing", {"--warmup": "1"}, "--warmup: must be at least 0 and less than 1, got 1.0"),
        ("typing", {"--weight-decay": "nan"}, "--weight-decay: must be at least 0 and less than 1, got nan"),
        ("typing", {"--max-length": "7"}, "--max-length: must be at least 8, got 7"),
        ("typing", {"--device": "tpu"}, "--device: 'tpu' is no device of torch"),
        ("typing", {"--device": "cuda:9"}, "--device: 'cuda:9' is not on this machine"),
        ("relation", {"--no-relation": "none"}, "--no-relation: no record of the training split has the relation"),
        (
            "relation",
            {"--max-length": "9"},
            "train.json: record 1: has 15 tokens, the longest allowed is 9; --truncate",
        ),
        ("glue", {"--tasks": "wnli"}, "--tasks: 'wnli' is none of cola"),
        ("glue", {"--tasks": "rte"}, "has no RTE/"),
        ("glue", {"--tracking-uri": "gopher://x"}, "--tracking-uri: cannot use gopher://x"),
    ],
)
def test_a_mistake_is_one_line(
    task: str, changes: dict[str, str], message: str, tiny_tasks: Path, tmp_path: Path
) -> None:
    options = {"--model": tiny_tasks / "bert", "--data": tiny_tasks / task, "--out": tmp_path / "x.json"} | changes
    arguments = [str(part).format(tmp=tmp_path) for option in options.items() for part in option]
    done = trelm("evaluate", task, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""


def test_a_tokenizer_of_another_model(tiny_tasks: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    with (model / "vocab.txt").open("a") as stream:
        stream.write("extra\nwords\n")
    (model / "tokenizer.json").unlink()
    done = trelm("evaluate", "typing", "--model", model, "--data", tiny_tasks / "typing", "--out", tmp_path / "x.json")
    assert done.returncode == 2
    assert f"its tokenizer has {config['vocab_size'] + 2} tokens, its model {config['vocab_size']}" in done.stderr


@pytest.mark.parametrize(
    ("content", "holds"),
    [
        ('{"task": "lama", "model": "models/t"}', "the result of lama for models/t"),
        ('{"task": "typing", "model": "models/t"}', "the result of typing for models/t"),
        ('{"a": 1}', "something that is no result"),
        ("notes", "something that is no result"),
    ],
)
def test_another_result_is_not_replaced(content: str, holds: str, tiny_tasks: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    out.write_text(content)
    command = ("evaluate", "typing", "--model", tiny_tasks / "bert", "--data", tiny_tasks / "typing", "--out", out)
    done = trelm(*command)
    assert done.returncode == 2
    assert f"--out: {out} holds {holds}; give another file, or remove it" in done.stderr
    assert out.read_text() == content
