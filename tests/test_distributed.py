"""Joining the process group."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.distributed import run_distributed_test
from tests.e2e.launch import environment
from trelm_ds import log
from trelm_ds.distributed import OneProcess, Ranks, connect, disconnect
from trelm_ds.errors import CommonError, UserError


@pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is built where there are GPUs")
def test_a_start_that_was_killed_does_not_hold_up_the_next(one_rank: Ranks) -> None:
    """torch's lock on DeepSpeed's CPU op is a file, which stays when its process is killed."""
    from torch.utils.cpp_extension import _get_build_directory

    left = Path(_get_build_directory("deepspeed_shm_comm", verbose=False)) / "lock"
    assert (left.parent / "deepspeed_shm_comm.so").is_file()
    left.touch()
    code = "from trelm_ds.distributed import connect, disconnect; connect(); disconnect(); print('met')"
    alone = {name: value for name, value in environment().items() if name not in ("RANK", "MASTER_PORT", "WORLD_SIZE")}
    done = subprocess.run([sys.executable, "-c", code], env=alone, capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("met\n"), done.stderr
    assert not left.exists()


@pytest.mark.parametrize(("number", "passes"), [(errno.EACCES, False), (errno.ESTALE, True)])
def test_a_file_that_one_rank_cannot_read_ends_all(one_rank: Ranks, number: int, passes: bool) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number), "/data/lengths.npy")

    with pytest.raises(CommonError, match=f"/data/lengths.npy: {os.strerror(number)}") as error:
        one_rank.all_agree(fail)
    assert error.value.passes is passes


def test_a_process_by_itself_agrees_with_itself() -> None:
    alone = OneProcess(torch.device("cpu"))
    alone.barrier()
    assert (alone.sum(1.5, 2.0), alone.max(3), alone.gather("a"), alone.from_first("b")) == ([1.5, 2.0], 3, ["a"], "b")
    assert alone.all_agree(lambda: 4) == 4

    def fail() -> None:
        raise UserError("--out: is a folder")

    with pytest.raises(CommonError, match=r"^--out: is a folder$"):
        alone.all_agree(fail)


def test_no_rank_ends_before_rank_0_has_told_their_mistake(tmp_path: Path) -> None:
    """A launcher ends all ranks with the first that ends."""
    assert run_distributed_test(_mistaken, 2, tmp_path / "log") == ["too much is damaged\n"] * 2


def _mistaken(file: Path) -> str:
    ranks = connect()
    log.logger.handlers = [logging.FileHandler(file)]
    error = CommonError("too much is damaged")
    if ranks.rank == 0:
        time.sleep(0.5)
    ranks.report(error)
    told = file.read_text()
    disconnect()
    assert error.reported
    return told
