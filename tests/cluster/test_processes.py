"""How many processes a job will have on a node, read off its sbatch file, its variables and the site file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.launch import ROOT
from trelm_ds.cluster.processes import check_tensor_parallel, gpus_per_node, processes_per_node
from trelm_ds.errors import UserError


def job(*options: str) -> str:
    return "\n".join(["#!/bin/bash", "# about", *(f"#SBATCH {option}" for option in options), "", "set -e"])


@pytest.mark.parametrize(
    ("options", "gpus"),
    [
        (["--gres=gpu:8"], 8),
        (["--gres=gpu:8", "--gres=gpu:4"], 4),
        (["--gres=gpu:8", "--gres=none"], None),
        (["--gres=gpu:0"], None),
        (["--gres gpu:a100:4  # of them"], 4),
        (["--gres=tmpfs:9,gpu:a100_80g:2(S:0-1)"], 2),
        (["--gres=gpu"], 1),
        (["--gres=gpu:a100"], 1),
        (["--gres=gpu:a100:4,gpu:v100:4"], None),  # of two kinds: nobody trains on them
        (["--gpus-per-node=h100:4"], 4),
        (["--ntasks-per-node=1 --gpus-per-task=2"], 2),
        (["--nodes=2", "--gpus=8"], 4),
        (["-N2 -G8"], 4),
        (["-N 2", "-G a100:8"], 4),
        (["--nodes=3", "--gpus=8"], None),
        (["--nodes=1-2", "--gpus=8"], None),
        (["--gpus=8"], None),
        (["--gpus-per-node=a100:4,v100:4"], None),
        (["--cpus-per-gpu=8"], None),
        ([], None),
    ],
)
def test_gpus(options: list[str], gpus: int | None) -> None:
    assert gpus_per_node(job(*options)) == gpus


def test_what_sbatch_does_not_read_does_not_count() -> None:
    assert gpus_per_node(f"{job('--gres=gpu:8')}\n#SBATCH --gres=gpu:4\n") == 8
    assert gpus_per_node(f"#!/bin/bash\n# replaced below: SBATCH --gres=gpu:8\n{job('--gpus-per-node=4')}") == 4


@pytest.mark.parametrize(
    ("options", "variables", "site", "processes"),
    [
        (["--gres=gpu:4"], {}, "", 4),
        (["--gres=gpu:4"], {"TRELM_PROCS_PER_NODE": "2"}, "TRELM_PROCS_PER_NODE=3", 2),
        (["--gres=gpu:4"], {}, "TRELM_PROCS_PER_NODE=3", 3),
        (["--gres=gpu:4"], {"SLURM_GPUS_ON_NODE": "7"}, 'TRELM_PROCS_PER_NODE="${SLURM_GPUS_ON_NODE:-8}"', 4),
        (["--gres=none"], {"SLURM_GPUS_ON_NODE": "7"}, 'TRELM_PROCS_PER_NODE="${SLURM_GPUS_ON_NODE:-6}"', 6),
        (["--gres=none"], {}, "", None),
    ],
)
def test_processes(
    options: list[str], variables: dict[str, str], site: str, processes: int | None, tmp_path: Path
) -> None:
    (tmp_path / "site.env").write_text(f"{site}\n")
    environment = {"PATH": "/usr/bin:/bin", "TRELM_SITE": f"{tmp_path}/site.env"} | variables
    assert processes_per_node(job(*options), ROOT, environment) == processes
    for degree in (2, 3, 4):
        if processes is None or processes % degree == 0:
            check_tensor_parallel(degree, job(*options), ROOT, environment)
        else:
            with pytest.raises(UserError, match=f"model.tensor_parallel: {degree} does not divide the {processes} "):
                check_tensor_parallel(degree, job(*options), ROOT, environment)
