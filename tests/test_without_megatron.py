"""megatron-core is imported by runs with tensor parallelism alone: it takes seconds, and warns of what it misses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked import environment
from tests.slurm.small_run import write_config

_COMMAND = """
from trelm_ds.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert end.code == 0, end.code
"""


def imported(program: str, *arguments: object) -> list[str]:
    """Runs a program in a fresh interpreter; returns which of megatron's modules it has imported."""
    listing = "print(*(name for name in sys.modules if name.split('.')[0] == 'megatron'))"
    command = [sys.executable, "-c", f"import sys\n{program}\n{listing}", *map(str, arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()


@pytest.mark.slow
def test_importing_pre_training_imports_none() -> None:
    assert imported("import trelm_ds.training.pretrain") == []
    assert "megatron.core" in imported("import trelm_ds.model.regions")  # so it is asked for rightly


@pytest.mark.slow
def test_a_run_without_tensor_parallelism_imports_none(tmp_path: Path, tiny_dataset: Path) -> None:
    """Built, trained for a step with all that TRELM has, and saved."""
    config = write_config(tmp_path / "run.yaml", max_steps=1)
    arguments = ("--config", "trelm_ds/recipes/trelm.yaml", "--config", config, "--data", tiny_dataset)
    assert imported(_COMMAND, "pretrain", *arguments, "--out", tmp_path / "run") == []
    assert (tmp_path / "run" / "checkpoints" / "latest.json").is_file()
