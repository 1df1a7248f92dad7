"""The tests' own processes: warm, apart from each other, and honest about how they end."""

from __future__ import annotations

import os
import signal
import sys

import pytest
import torch.distributed as dist

from tests.distributed import run_distributed_test
from tests.e2e.launch import forked_ranks, trelm
from trelm_ds.distributed import connect, disconnect


def sum_of_ranks() -> tuple[int, bool]:
    warm = "tests.preloaded" in sys.modules
    ranks = connect()
    total = ranks.sum(ranks.rank)[0]
    disconnect()
    return int(total), warm and not dist.is_initialized()


def fails_on(rank: str, how: str) -> None:
    if os.environ["RANK"] == rank:
        if how == "raises":
            raise ZeroDivisionError("asked for")
        os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()  # as one that waits for the others


def test_ranks_are_warm_and_meet() -> None:
    assert run_distributed_test(sum_of_ranks, 3) == [(3, True)] * 3


@pytest.mark.parametrize(
    ("how", "message"),
    [("raises", "rank 1 failed:\nTraceback(.|\n)*ZeroDivisionError: asked for"), ("dies", "rank 1 died, exit code -9")],
)
def test_a_rank_that_fails_is_named_and_the_next_ones_are_well(how: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        run_distributed_test(fails_on, 2, "1", how)
    assert run_distributed_test(sum_of_ranks, 2) == [(1, True)] * 2


def test_a_command_has_its_own_output_environment_and_end() -> None:
    version = trelm("--version")
    assert (version.returncode, version.stderr) == (0, "")
    assert version.stdout.startswith("trelm-ds ")
    assert trelm("fly").stderr.startswith("trelm: error: ")
    assert trelm("fly", RANK="1").stderr == trelm("fly").stderr  # RANK means nothing to it
    assert forked_ranks(2, "--version").stdout == version.stdout * 2
    assert forked_ranks(2, "fly").returncode == 1
