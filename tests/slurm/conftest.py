"""The local Slurm cluster as fixtures."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.slurm.local_cluster import Cluster, local_slurm, processes_of


@contextmanager
def _root() -> Iterator[Path]:
    """A folder for a cluster, which is taken down at the end and must leave nothing behind."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(name, path=path) is None]
    if missing:
        pytest.skip(f"Slurm is not installed: no {', '.join(missing)}")
    root = Path(tempfile.mkdtemp(prefix="trelm-slurm-"))  # not tmp_path: a socket's path has 108 bytes at most
    try:
        yield root
    finally:
        down = local_slurm("down", root)
    assert (down.returncode, down.stdout) == (0, "")
    assert processes_of(root) == {}
    assert not root.exists()


@pytest.fixture
def empty_root() -> Iterator[Path]:
    """For a test that starts a cluster of its own."""
    with _root() as root:
        yield root


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster."""
    with _root() as root:
        up = local_slurm("up", root)
        assert up.returncode == 0, up.stdout
        yield Cluster(root)
