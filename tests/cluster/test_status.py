"""`trelm status` on run folders as they may lie there, without Slurm; and on a real short run."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from threading import Timer

import pytest
import yaml

from tests.e2e.launch import trelm
from trelm_ds.cli import main
from trelm_ds.cluster.status import status_of
from trelm_ds.cluster.status_text import duration
from trelm_ds.files import is_locked, lock

Status = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "no programs"))


@pytest.fixture
def status(capsys: pytest.CaptureFixture[str]) -> Status:
    """Runs `trelm status` in this process; returns exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["status", *map(str, arguments)])
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err

    return run


def note(run: Path, event: str, text: str = "", job: str = "7", restart: int = 0) -> None:
    """As slurm/pretrain_job.sh does."""
    (run / "slurm").mkdir(parents=True, exist_ok=True)
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    codes = {"done": 0, "SIGUSR1": 138, "stop file": 130, "ended by Slurm": 143}
    code = next((code for words, code in codes.items() if words in text), 2) if event == "end" else None
    content = {"job": job, "code": code, "event": event, "step": 0, "restart": restart, "time": when, "nodes": "n[1-2]"}
    with (run / "slurm" / "history.jsonl").open("a") as stream:
        stream.write(json.dumps(content | {"log": f"{run}/slurm/{job}.log", "text": text}) + "\n")


def train(run: Path, steps: int, max_steps: int, checkpoint: int | None = None) -> Path:
    """A run that logged every second step: 8 sequences in 4 s, and 2 s of waiting for checkpoints per log point."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"trainer": {"max_steps": max_steps, "global_batch_size": 8}}))
    point = {"accuracy": 0.5, "lr": 1e-4, "tokens_per_s": 1234.5, "sequences_per_s": 2.0, "checkpoint_wait_s": 2.0}
    lines = [
        json.dumps({"step": step, "loss": 3.0 - step / 100, "skipped_steps": 1.0} | point)
        for step in range(2, steps + 1, 2)
    ]
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    if checkpoint:
        folder = run / "checkpoints" / f"step-{checkpoint:08d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()
        pointer = {"checkpoint": folder.name, "step": checkpoint}
        (run / "checkpoints" / "latest.json").write_text(json.dumps(pointer))
    return run


@pytest.mark.parametrize(
    ("events", "state", "reason"),
    [
        ([("start", "")], "running", "Slurm cannot be asked here"),
        ([("start", ""), ("requeue", "SIGUSR1")], "requeued", "Slurm cannot be asked here"),
        ([("start", ""), ("requeue", "SIGUSR1"), ("start", ""), ("end", "done")], "done", None),
        ([("start", ""), ("end", "ended by Slurm: CANCELLED")], "stopped", "CANCELLED"),
        ([("start", ""), ("end", "stopped by its stop file")], "stopped", "stop file"),
        ([("start", ""), ("end", "not requeued (TRELM_REQUEUE=0): SIGUSR1")], "stopped", "SIGUSR1"),
        ([("start", ""), ("end", "not requeued: a restart would not fix this mistake")], "failed", "mistake"),
        ([("start", ""), ("stalled", "3 starts in a row")], "stalled", "3 starts in a row"),
    ],
)
def test_state_by_what_the_job_noted(
    tmp_path: Path, events: list[tuple[str, str]], state: str, reason: str | None
) -> None:
    run = train(tmp_path / "run", steps=4, max_steps=10)
    note(run, "end", "not requeued: an older job", job="6")
    for restart, (event, text) in enumerate(events):
        note(run, event, text, restart=restart)
    with (run / "slurm" / "history.jsonl").open("a") as stream:
        stream.write('{"job": "8", "event": "sta')  # a kill cut it short
    found = status_of(run)
    assert found.state == state
    assert (found.reason is None) if reason is None else (reason in str(found.reason))
    assert (found.job, found.nodes, found.restarts) == ("7", "n[1-2]", len(events) - 1)
    assert found.log == f"{run}/slurm/7.log"
    assert found.live == (found.remaining_s is not None)


def test_numbers_of_a_run(tmp_path: Path, status: Status) -> None:
    run = train(tmp_path / "run", steps=100, max_steps=200, checkpoint=90)
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 102, "lo')
    hour_ago = time.time() - 3600
    os.utime(run / "checkpoints" / "latest.json", (hour_ago, hour_ago))
    (run / "mlflow_spool.jsonl").write_text('{"kind": "run"}\n{"kind": "file"}\n{"kind": "metr')
    (run / "mlflow_run.json").write_text('{"sent": 16}')
    note(run, "start")
    found = status_of(run)
    assert (found.step, found.max_steps, found.loss, found.tokens_per_s) == (100, 200, 2.0, 1234.5)
    assert found.remaining_s == pytest.approx(100 * (8 / 2.0 + 2.0 / 2))  # a step's sequences, its share of the waiting
    assert found.skipped_steps == 1
    assert (found.checkpoint_step, found.unsent) == (90, 1)
    code, text, _ = status(run)
    lines = dict(line.split(None, 1) for line in text.replace("last event", "event").splitlines())
    assert code == 0
    assert lines["state"] == "running, job 7 on n[1-2]"
    assert lines["step"] == "100 of 200 (50.0 %)"
    assert lines["speed"] == "1,234 tokens/s"
    assert lines["checkpoint"] == "step 90, 1 h 0 min ago"
    assert lines["skipped"] == "1 steps"
    ends = datetime.strptime(lines["ETA"].split(", ")[1], "%Y-%m-%d %H:%M")
    assert lines["ETA"].startswith("8 min, ")
    assert 300 < (ends - datetime.now()).total_seconds() < 600
    assert lines["MLflow"] == "1 entry waits to be sent"


def test_a_run_without_slurm_is_known_by_its_lock(tmp_path: Path) -> None:
    run = train(tmp_path / "run", steps=4, max_steps=10, checkpoint=4)
    (run / ".lock").touch()  # left by a kill
    assert status_of(run).state == "stopped"
    with lock(run / ".lock", "run"):
        assert status_of(run).state == "running"
    assert status_of(run).state == "stopped"
    shutil.rmtree(run)
    assert status_of(train(run, steps=10, max_steps=10, checkpoint=10)).state == "done"


def test_looking_at_a_lock_turns_nobody_away(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert is_locked(path) is False
    assert not path.exists()
    path.touch()
    with path.open("rb") as looking:  # as `is_locked` does, for longer
        fcntl.flock(looking, fcntl.LOCK_SH)
        Timer(0.05, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        with lock(path, "run"):
            assert is_locked(path) is True


def test_several_runs_make_a_table_and_others_are_named(tmp_path: Path, status: Status) -> None:
    train(tmp_path / "a", steps=50, max_steps=100, checkpoint=40)
    note(tmp_path / "b", "start")
    (tmp_path / "mlflow.db").touch()
    (tmp_path / "folder").mkdir()
    code, text, errors = status(*(tmp_path / name for name in ("a", "b", "mlflow.db", "folder")))
    assert code == 2
    assert errors == f"trelm: error: {tmp_path}/mlflow.db, {tmp_path}/folder: no run folder of `trelm pretrain` or " + (
        "`trelm submit`\n"
    )
    header, first, second = text.splitlines()
    assert header.split()[:4] == ["run", "state", "job", "step"]
    assert first.split()[:5] == [f"{tmp_path}/a", "stopped", "-", "50", "50.0"]
    assert second.split()[:5] == [f"{tmp_path}/b", "running", "7", "0", "-"]
    assert len(header) == len(first) == len(second)


def test_json_is_for_machines(tmp_path: Path, status: Status) -> None:
    run = train(tmp_path / "run", steps=4, max_steps=10)
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 6, "loss": NaN, "accuracy": 0.0, "lr": 0.0}\n')
    note(run, "start")
    code, text, _ = status("--json", run)
    (found,) = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert code == 0
    assert (found["run"], found["state"], found["step"], found["loss"]) == (str(run), "running", 6, None)
    assert datetime.fromisoformat(found["ends_at"]).tzinfo is not None
    assert "loss        -\n" in status(run)[1]


@pytest.mark.parametrize(
    "damage",
    [
        {"config.yaml": "{"},
        {"config.yaml": "trainer: 3\n"},
        {"metrics.jsonl": "[]\n3\n\x00\n"},
        {"slurm/history.jsonl": '[]\n{"job": 3}\n{"job": "3", "event": "start", "time": 5, "restart": "x"}\n'},
        {"slurm/history.jsonl": '{"job": "3", "event": ["start"]}\n{"job": "3", "event": "start"}\n'},
        {"submissions/001/job.json": '{"job": '},
        {"checkpoints/latest.json": "[]"},
        {"mlflow_run.json": "[]", "mlflow_spool.jsonl": "\n"},
    ],
)
def test_damaged_files_do_not_matter(tmp_path: Path, status: Status, damage: dict[str, str]) -> None:
    run = train(tmp_path / "run", steps=4, max_steps=10, checkpoint=4)
    for name, text in damage.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)
    code, text, errors = status(run)
    assert (code, errors) == (0, "")
    assert "step 4" in text  # of the checkpoint


def test_log_points_without_numbers_are_passed_over(tmp_path: Path, status: Status) -> None:
    run = train(tmp_path / "run", steps=4, max_steps=10, checkpoint=4)
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write(
            '{"step": null, "loss": 1, "accuracy": 1, "lr": 1}\n{"step": 5, "loss": "a", "accuracy": 1, "lr": 1}\n'
        )
    code, text, errors = status(run)
    assert (code, errors) == (0, "")
    assert "step        4 of 10" in text


def test_a_refused_submission_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "submissions" / "001"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text('{"job": null, "error": "sbatch: no such partition"}')
    (folder / "config.yaml").write_text("trainer: {max_steps: 5, global_batch_size: 1}")
    found = status_of(tmp_path / "run")
    assert (found.state, found.reason, found.max_steps) == ("not started", "sbatch: no such partition", 5)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min"), (3600, "1 h 0 min"), (7 * 3600 + 61, "7 h 1 min"), (200_000, "2 d 7 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.slow
def test_a_real_run(tmp_path: Path, tiny_dataset: Path) -> None:
    settings = {
        "model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32},
        "optimizer": {"warmup_steps": 2},
        "trainer": {"max_steps": 6, "global_batch_size": 8, "micro_batch_tokens": 64, "precision": "fp32"},
    }
    settings["trainer"] |= {"log_every": 2, "checkpoint_every": 3}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    run = tmp_path / "run"
    done = trelm("pretrain", "--config", tmp_path / "run.yaml", "--data", tiny_dataset, "--out", run)
    assert done.returncode == 0, done.stderr
    found = status_of(run)
    assert (found.state, found.step, found.max_steps, found.checkpoint_step) == ("done", 6, 6, 6)
    assert found.tokens_per_s is not None
    assert (found.skipped_steps, found.unsent) == (0, 0)
    text = trelm("status", run).stdout
    assert "step        6 of 6 (100.0 %)" in text
