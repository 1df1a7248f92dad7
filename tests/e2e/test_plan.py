"""`trelm plan` as a user has it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml

from tests.e2e.launch import trelm
from tests.forked import ROOT

TINY = ("--config", ROOT / "trelm_ds" / "recipes" / "sizes" / "tiny.yaml", "--trainer.global_batch_size", "64")


@pytest.mark.slow
def test_a_plan_is_shown_drawn_and_written(tmp_path: Path) -> None:
    picture, file = tmp_path / "plan.svg", tmp_path / "best.yaml"
    done = trelm(
        "plan",
        *TINY,
        "--gpu",
        "h100",
        "--gpus-per-node",
        "2",
        "--plot",
        picture,
        "--write",
        file,
        "--host-memory",
        "1m",
    )
    assert done.returncode == 0, done.stderr
    assert "1 x 2 h100: 80 GiB each, of which tensors get 75.3" in done.stdout
    assert "offloads 0.1 GiB to the CPU memory of a node, which has 0.0 GiB" in done.stdout
    assert "*: as the settings have it" in done.stdout
    assert f"settings: {file}, with {tmp_path / 'best.ds.json'}" in done.stdout
    started = "torchrun --standalone --nproc-per-node 2 -m trelm_ds pretrain"
    assert f"use it: {started} {shlex.join(map(str, TINY))} --config {file} --data DATASET --out RUN" in done.stdout
    assert picture.read_text().count("tokens/s") > 5
    written = yaml.safe_load(file.read_text())
    used = trelm("pretrain", *TINY, "--config", file, "--print-config")
    assert used.returncode == 0, used.stderr
    settings = yaml.safe_load(used.stdout)
    assert settings["trainer"]["micro_batch_tokens"] == written["trainer"]["micro_batch_tokens"]
    assert settings["trainer"]["ds_config"] == str(tmp_path / "best.ds.json")


@pytest.mark.slow
def test_as_json_and_nothing_fits(tmp_path: Path) -> None:
    done = trelm("plan", *TINY, "--gpu", "0.5g", "--gpus-per-node", "1", "--json", "--write", tmp_path / "best.yaml")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert all("GiB more" in row["problem"] for row in found["choices"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "--gpu: required"),
        (("--gpu", "b52"), "--gpu: 'b52' is none of a100-40g"),
        (("--gpu", "h100", "--nodes", "0"), "--nodes: must be at least 1, got 0"),
        (("--gpu", "h100", "--host-memory", "much"), "--host-memory: give a size such as 8g or 500m, not 'much'"),
        (("--gpu", "h100", "--plot", "plan.gif"), "--plot: give a .png, .pdf or .svg file"),
        (("--gpu", "h100", "--write", "/no/such/place/best.yaml"), "--write: /no/such/place is no folder"),
        (("--gpu", "h100", "--data", "/no/such/dataset"), "/no/such/dataset"),
        (("--gpu", "h100", "--trainer.precison", "fp32"), "trainer.precison"),
    ],
)
def test_mistakes_are_one_line(given: tuple[str, ...], message: str) -> None:
    done = trelm("plan", *TINY, *given)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
