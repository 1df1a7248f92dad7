"""A small run for the local cluster, and what is left of it afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

SCRIPT = Path("slurm/pretrain_large.sh")
OBJECTIVE = "trelm_ds/recipes/mlm.yaml"
CPU_NODE = ("--gres=none", "--cpus-per-task=1")
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="the local cluster hands out made-up GPU numbers")


def write_config(path: Path, max_steps: int = 1_000_000, loader_workers: int = 0) -> Path:
    """A model that takes milliseconds per step; what a step does, does not depend on max_steps.

    A process of the loader costs a start of its own, so only the tests that are about processes have one.
    """
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    trainer = {"max_steps": max_steps, "global_batch_size": 8, "micro_batch_tokens": 64, "precision": "fp32"}
    path.write_text(
        yaml.safe_dump(
            {
                "model": sizes | {"max_position_embeddings": 64},
                "optimizer": {"warmup_steps": 1, "schedule": "constant"},
                "trainer": trainer | {"ds_config": "ds_configs/zero1.json", "checkpoint_every": 10, "log_every": 1},
                "loader": {"workers": loader_workers},
                "tracking": {"enabled": False},
            }
        )
    )
    return path


def site(data: Path, out: Path, config: Path, **more: str) -> dict[str, str]:
    """The variables of a job with one process on each node."""
    values = {"TRELM_DATA": str(data), "TRELM_OUT": str(out), "TRELM_CONFIG": f"{OBJECTIVE} {config}"}
    return values | {"TRELM_PROCS_PER_NODE": "1"} | more


def left_by_an_allocation() -> dict[str, str]:
    """What an interactive job leaves in the shell: its memory, its GPUs, the cores that a step of it was bound to."""
    return {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_ID": "0",
        "SLURM_MEM_PER_CPU": "2000",
        "SLURM_CPU_BIND": "quiet,mask_cpu:0x100000000000000000000000000000000000000000000",
        "SLURM_GPUS_PER_NODE": "7",
        "SLURM_GPUS_ON_NODE": "7",
        "SLURM_NTASKS_PER_GPU": "3",
        "SLURM_CPUS_PER_GPU": "3",
    }


def unhurried(folder: Path) -> dict[str, str]:
    """A variable with which ranks pause after every step, so that they wait for Slurm's clocks without the cores."""
    (folder / "sitecustomize.py").write_text(
        "import time\n"
        "from trelm_ds import faults\n"
        "reach = faults.reach\n"
        "def pause(point):\n"
        "    reach(point)\n"
        "    if point == 'step-done':\n"
        "        time.sleep(0.1)\n"
        "faults.reach = pause\n"
    )
    return {"PYTHONPATH": str(folder)}


def last_step(out: Path) -> int:
    """The step of the last committed checkpoint, 0 before the first."""
    try:
        return json.loads((out / "checkpoints" / "latest.json").read_text())["step"]
    except FileNotFoundError:
        return 0


def history(out: Path) -> list[dict[str, Any]]:
    """What the job has noted of its starts and ends."""
    return [json.loads(line) for line in (out / "slurm" / "history.jsonl").read_text().splitlines()]


def events(out: Path) -> list[str]:
    return [line["event"] for line in history(out)]


def losses(out: Path) -> dict[int, float]:
    """By step; the last one that was logged."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def hashes(out: Path, step: int) -> dict[str, str]:
    """sha256 of the files of a checkpoint."""
    manifest = json.loads((out / "checkpoints" / f"step-{step:08d}" / "manifest.json").read_text())
    return {name: digest for name, (_, digest) in manifest["files"].items()}
