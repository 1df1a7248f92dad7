"""`trelm tune` with real trials on the CPU: what cannot fit, what crashes, what hangs; killed and started again."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from jsonargparse import ArgumentParser

from tests.e2e.launch import trelm
from tests.forked import Command, environment
from tests.planning.made_plans import choice, planned
from trelm_ds.planning.choices import Choice
from trelm_ds.planning.trial import Limits
from trelm_ds.planning.trials import Trials
from trelm_ds.settings import add_settings, parse

# Steps of 160 tokens, so that there is one size of micro-batches: each ZeRO stage, recomputed or not, is one choice.
SETTINGS = """
model: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 32}
optimizer: {warmup_steps: 2}
selection: {strategy: none}
cka: {decoder: none}
memory: {enabled: false}
routing: {enabled: false}
trainer: {max_steps: 1000, global_batch_size: 16, micro_batch_tokens: 64, precision: fp32}
tracking: {enabled: false}
loader: {workers: 0}
"""
# Of every start of Python below it: trials of ZeRO 1 crash, of 2 hang, of 3 ask for more than there may be.
FAULTS = """
import sys, time
from trelm_ds import faults
reach = faults.reach
def fail(point):
    reach(point)
    if point == "step-backward" and "/zero1-" in " ".join(sys.argv):
        raise ValueError("a matrix is odd")
    if point == "step-done" and "/zero2-" in " ".join(sys.argv):
        time.sleep(100_000)
    if point == "step-backward" and "/zero3-" in " ".join(sys.argv):
        import torch
        torch.ones(1 << 30, dtype=torch.uint8)
faults.reach = fail
"""
WAIT_S = 600


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(SETTINGS)
    return path


def begun(process: Command, file: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while not file.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def trials_of(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if "pretrain" in (line := " ".join(process.cmdline())) and str(folder) in line:
                found.append(line)
        except psutil.Error:
            continue
    return found


def results(folder: Path) -> dict[str, Any]:
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("trials/*/result.json")}


@pytest.mark.slow
def test_a_killed_tune_goes_on_and_reports_all(settings: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAULTS)
    path = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"}
    out = tmp_path / "T"
    limits = ["--trials", "4", "--steps", "4", "--trial-minutes", "1.2", "--memory-limit", "1g"]
    arguments = ["tune", "--config", settings, "--trainer.seed", "1", "--data", tiny_dataset, "--out", out, *limits]
    first = Command([*map(str, arguments)], changes=path)
    begun(first, out / "trials" / "zero2-64" / "run" / "metrics.jsonl")
    os.kill(first.pid, signal.SIGKILL)
    first.wait(WAIT_S)
    assert set(results(out)) == {"zero0-64", "zero1-64"}
    made = {name: (out / "trials" / name / "result.json").stat().st_mtime_ns for name in results(out)}

    done = trelm(*arguments, **path)
    assert done.returncode == 0, done.stderr
    assert trials_of(out) == []
    found = results(out)
    assert {name: (out / "trials" / name / "result.json").stat().st_mtime_ns for name in made} == made
    assert {name: result["status"] for name, result in found.items()} == {
        "zero0-64": "ok", "zero1-64": "crashed", "zero2-64": "hung", "zero3-64": "out of memory",
    }  # fmt: skip
    assert found["zero1-64"]["reason"] == "ValueError: a matrix is odd"
    assert found["zero2-64"]["reason"].startswith(("nothing has moved for", "no step after step 0"))
    assert "can't allocate memory" in found["zero3-64"]["reason"]
    for name, result in found.items():
        assert re.search(rf"^ *{name} .* {result['status']}\b", done.stdout, re.MULTILINE), done.stdout
    assert found["zero0-64"]["tokens_per_s"] > 0
    assert not list(out.glob("trials/*/run/checkpoints"))

    written = json.loads((out / "results.json").read_text())
    assert (written["best"], len(written["trials"])) == ("zero0-64", 4)
    assert (out / "tune.png").is_file()
    command = shlex.split(done.stdout.partition("use it: ")[2].strip())
    assert command[:2] == ["trelm", "pretrain"]
    command = [str(tmp_path / "run") if argument == "RUN" else argument for argument in command[1:]]
    used = trelm(*command, "--trainer.max_steps", 3)
    assert used.returncode == 0, used.stderr
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["trainer"]["ds_config"], config["trainer"]["seed"]) == (str(out / "best.ds.json"), 1)


@pytest.mark.slow
def test_memory_is_measured_against_a_limit(settings: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    """A step of 15,000 tokens with 8,192 neurons: all at once that takes over 1.4 GiB, in parts a tenth of it."""
    more = ["--model.intermediate_size", "8192", "--trainer.global_batch_size", "1500", "--model.hidden_size", "8"]
    out, parser = tmp_path / "T", ArgumentParser(exit_on_error=False, allow_abbrev=False, print_config=None)
    add_settings(parser)
    config = parse(parser, ["--config", str(settings), *more])[0]
    trials = Trials(config, out, str(tiny_dataset), 1, Limits(2, WAIT_S, 1 << 30), Choice.ds_config, {})
    large, small = (trials.run(planned(choice(0, tokens), 1.0), lambda: False) for tokens in (16384, 1024))
    assert large.outcome.status == "out of memory"
    assert "can't allocate memory" in large.outcome.reason
    assert small.outcome.status == "ok"


@pytest.mark.slow
def test_a_signal_ends_it_with_its_trial(settings: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "T"
    arguments = ["tune", "--config", settings, "--data", tiny_dataset, "--out", out, "--ranks", "2"]
    process = Command([*map(str, arguments)])
    begun(process, out / "trials" / "zero1-64" / "log.txt")
    deadline = time.monotonic() + WAIT_S
    while len(trials_of(out)) < 3:  # the launcher and its ranks, in sessions of their own
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(WAIT_S)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert output.endswith("stopped by signal 15; the same command goes on\n")
    assert trials_of(out) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--data: required; see `trelm tune --help`"),
        (("--data", "D"), "--out: required; see `trelm tune --help`"),
        (("--steps", "1"), "--steps: must be at least 2, got 1"),
        (("--trials", "0"), "--trials: must be at least 1, got 0"),
        (("--budget-minutes", "-1"), "--budget-minutes: must be greater than 0, got -1.0"),
        (("--trial-minutes", "nan"), "--trial-minutes: expected float, got 'nan'"),
        (("--trial-minutes", "1e9"), "--trial-minutes: must be at most 1,000,000, got 1000000000.0"),
        (("--memory-limit", "much"), "--memory-limit: give a size such as 8g or 500m, not 'much'"),
        (("--gpu", "h100"), "--gpu: trials run on this machine, which has no GPU; leave out h100"),
        (("--trainer.max_stepz", "1"), "--trainer.max_stepz: unknown setting; did you mean --trainer.max_steps?"),
    ],
)
def test_a_mistake_is_one_line(
    settings: Path, tiny_dataset: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    given = ["--data", tiny_dataset, "--out", tmp_path / "T"] if options[:1] not in ((), ("--data",)) else []
    done = trelm("tune", "--config", settings, *given, *options)
    assert (done.returncode, done.stderr) == (2, f"trelm: error: {said}\n")
