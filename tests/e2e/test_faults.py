"""Stops, hangs and lost ranks of the real command: what is committed, what is said, with which exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.launch import environment, forked_ranks, torchrun, trelm
from tests.forked import Command

SETTINGS = """
model: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 32}
optimizer: {warmup_steps: 2}
cka: {max_token_share: 1.0}
trainer: {max_steps: 100000, global_batch_size: 16, micro_batch_tokens: 64, precision: fp32, log_every: 1}
tracking: {enabled: false}
loader: {workers: 0}
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "run.yaml"
    path.write_text(SETTINGS)
    return path


def real(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(), start_new_session=True
    )


def forked(arguments: list[object]) -> Command:
    return Command([*map(str, arguments)], together=True)


def started(process: subprocess.Popen[str] | Command, run: Path, step: int) -> Any:
    """The process once it has done some steps."""
    metrics, deadline = run / "metrics.jsonl", time.monotonic() + 500
    while not (metrics.is_file() and f'"step": {step},' in metrics.read_text()):
        if process.poll() is not None or time.monotonic() > deadline:
            kill(process)
            raise AssertionError(process.communicate()[0])
        time.sleep(0.05)
    return process


def ended(process: subprocess.Popen[str] | Command) -> str:
    try:
        return process.communicate(timeout=500)[0]
    finally:
        kill(process)


def kill(process: subprocess.Popen[str] | Command) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def committed(run: Path) -> int:
    return int(json.loads((run / "checkpoints" / "latest.json").read_text())["step"])


def test_a_file_stops_a_run(
    settings: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("TRELM_EXIT_FOLDER", str(tmp_path))
    arguments = ["pretrain", "--config", settings, "--data", tiny_dataset, "--out", run]
    process = started(forked(arguments), run, 3)
    (run / "stop").touch()
    output = ended(process)
    assert process.returncode == 130, output
    assert f"stopped by the file 'stop'; the same command continues: step {committed(run)}" in output
    assert not (run / "stop").exists()
    assert (tmp_path / "rank-0").read_text() == "130\n"


def test_a_closed_terminal_stops_a_run(settings: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started(forked(["pretrain", "--config", settings, "--data", tiny_dataset, "--out", run]), run, 3)
    process.send_signal(signal.SIGHUP)
    output = ended(process)
    assert process.returncode == 129, output
    assert f"stopped by signal 1; the same command continues: step {committed(run)}" in output


@pytest.mark.slow
@pytest.mark.parametrize("redirected", ["2>&1 | head -n 1 >first", "2>&- >&-"])
def test_a_log_that_nobody_reads_ends_no_training(
    settings: Path, tiny_dataset: Path, tmp_path: Path, redirected: str
) -> None:
    arguments = f"--config {settings} --data {tiny_dataset} --out run --trainer.max_steps 8"
    command = f"{sys.executable} -m trelm_ds pretrain {arguments} {redirected}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment(), timeout=300)
    assert done.returncode == 0
    assert committed(tmp_path / "run") == 8


def test_a_time_limit_stops_a_run(settings: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    arguments = ["pretrain", "--config", settings, "--data", tiny_dataset, "--out", tmp_path / "run"]
    for _ in range(2):  # and the next start goes on for as long
        done = trelm(*arguments, "--trainer.max_minutes", 1e-6)
        assert done.returncode == 75, done.stderr
    assert "stopped by trainer.max_minutes; the same command continues: step 2" in done.stderr
    assert committed(tmp_path / "run") == 2


@pytest.mark.slow
def test_a_stopped_rank_is_found_and_named(settings: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    place = ["--data", tiny_dataset, "--out", run, "--guards.hang_minutes", 0.1]
    process = started(real(torchrun(2, "pretrain", "--config", settings, *place)), run, 3)
    ranks = {int(child.environ()["RANK"]): child for child in psutil.Process(process.pid).children()}
    ranks[1].suspend()
    output = ended(process)
    assert process.returncode != 0
    assert f"rank 1 (process {ranks[1].pid} on " in output
    assert "T (stopped)) does not answer; where the ranks were is in" in output
    assert [path.name for path in (run / "stacks").iterdir()] == ["rank-00000.txt"]
    stacks = (run / "stacks" / "rank-00000.txt").read_text()
    assert "train_step" in stacks
    assert f"exitcode  : {71}" in output  # torchrun's report of the first failure


@pytest.mark.slow
def test_the_rank_that_fails_first_explains_itself(settings: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    """Rank 1 runs into a bug; rank 0 loses its connection."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    import trelm_ds.training.guards as guards\n"
        "    def judge(self, loss):\n"
        "        raise ZeroDivisionError('a bug of rank 1')\n"
        "    guards.Guard.judge = judge\n"
    )
    variables = environment()
    variables["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{variables['PYTHONPATH']}"
    command = torchrun(2, "pretrain", "--config", settings, "--data", tiny_dataset, "--out", tmp_path / "run")
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("trelm: ")]
    assert said[0].startswith("trelm: error: rank 1 on ")
    assert said[0].endswith("ZeroDivisionError: a bug of rank 1")
    assert all(line.startswith("trelm: rank 0 ends because of rank 1 on ") for line in said[1:])
    assert done.stderr.index(said[0]) < done.stderr.index("Traceback")
    assert done.stderr.count("Traceback") == 2  # of rank 1, and torchrun's own


def test_a_mistake_that_every_rank_meets_is_told_once(settings: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    done = forked_ranks(3, "pretrain", "--config", settings, "--data", tiny_dataset, "--out", tmp_path / "run")
    told = [line for line in done.stderr.splitlines() if line.startswith("trelm: error: ")]
    assert len(told) == 1
    assert "trainer.global_batch_size: 16 is no multiple of 3 ranks" in told[0]


@pytest.mark.slow
def test_ranks_stop_when_their_launcher_is_killed(settings: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    place = ["--data", tiny_dataset, "--out", run, "--trainer.checkpoint_every", 100000]
    process = started(real(torchrun(2, "pretrain", "--config", settings, *place)), run, 3)
    ranks = psutil.Process(process.pid).children()
    process.kill()
    _, alive = psutil.wait_procs(ranks, timeout=300)
    assert not alive
    output = process.communicate()[0]
    assert f"stopped by the end of its launcher; the same command continues: step {committed(run)}" in output
    assert not (run / ".lock").exists()


def test_two_runs_in_one_folder_do_not_mix(settings: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["pretrain", "--config", settings, "--data", tiny_dataset, "--out", run]
    process = started(forked(arguments), run, 2)
    second = trelm(*arguments)
    assert second.returncode == 2
    assert f"--out: {run} is in use by another process" in second.stderr
    process.send_signal(signal.SIGTERM)
    output = ended(process)
    assert process.returncode == 143, output
