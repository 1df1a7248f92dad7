"""A rank's environment: torchrun's, a PyTorchJob's, what a shell has left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.e2e.launch import trelm
from trelm_ds.errors import UserError
from trelm_ds.launched import complete_environment, is_launched, leave_exit_code

WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*WHOLE, "LOCAL_RANK"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)


def test_a_process_alone_is_the_only_rank() -> None:
    assert not is_launched()
    os.environ["MASTER_ADDR"] = "left by a shell"
    complete_environment()
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")] == [
        "0",
        "1",
        "0",
        "127.0.0.1",
    ]
    assert os.environ["MASTER_PORT"] == "0"  # any that is free


@pytest.mark.parametrize("local", [None, "3"])
def test_a_launchers_ranks_stay(local: str | None) -> None:
    given = WHOLE | ({} if local is None else {"LOCAL_RANK": local})
    os.environ.update(given)
    assert is_launched()
    complete_environment()
    assert {name: os.environ[name] for name in WHOLE} == WHOLE
    assert os.environ["LOCAL_RANK"] == (local or "0")  # a PyTorchJob's pods have one process each and say nothing


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"RANK": "1"}, "RANK is set, but not WORLD_SIZE, MASTER_ADDR, MASTER_PORT: unset, or start"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "RANK and WORLD_SIZE are set, but not MASTER_ADDR, MASTER_PORT"),
        (WHOLE | {"RANK": "worker-1"}, "RANK: must be a number where a launcher has set it, got 'worker-1'"),
        (WHOLE | {"RANK": "2"}, "RANK: is 2, but WORLD_SIZE is 2"),
        (WHOLE | {"LOCAL_RANK": "-1"}, "LOCAL_RANK: must be a number"),
    ],
)
def test_half_a_launcher_is_refused(given: dict[str, str], message: str) -> None:
    os.environ.update(given)
    with pytest.raises(UserError, match=message):
        complete_environment()


@pytest.mark.parametrize("given", [{"RANK": "1"}, WHOLE])
@pytest.mark.parametrize("arguments", [["verify", "nowhere"], ["evaluate", "lama", "--model", "x", "--data", "x"]])
def test_commands_that_are_not_distributed_know_no_ranks(given: dict[str, str], arguments: list[str]) -> None:
    said = trelm(*arguments, **given)
    assert (said.returncode, said.stderr.count("trelm: error: ")) == (2, 1)
    assert said.stderr == trelm(*arguments).stderr


def test_a_rank_left_in_the_environment_stops_no_message() -> None:
    said = trelm("pretrain", "--data", "x", "--out", "y", RANK="1")
    assert said.returncode == 2
    assert said.stderr.startswith("trelm: error: RANK is set, but not WORLD_SIZE")
    refused = trelm("pretrain", "--trainer.max_stepz", "3", RANK="1")
    assert refused.stderr.startswith("trelm: error: --trainer.max_stepz: unknown setting")


def test_a_rank_leaves_its_exit_code_where_a_batch_script_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_exit_code(130)  # nobody asks
    monkeypatch.setenv("TRELM_EXIT_FOLDER", str(tmp_path))
    leave_exit_code(130)  # no rank
    assert not list(tmp_path.iterdir())
    os.environ.update(WHOLE)
    leave_exit_code(130)
    assert (tmp_path / "rank-1").read_text() == "130\n"
    monkeypatch.setenv("TRELM_EXIT_FOLDER", str(tmp_path / "gone"))
    leave_exit_code(130)


def test_a_mistake_leaves_its_exit_code(tmp_path: Path) -> None:
    done = trelm("pretrain", "--data", "nowhere", **WHOLE, TRELM_EXIT_FOLDER=str(tmp_path))
    assert done.returncode == 2
    assert (tmp_path / "rank-1").read_text() == "2\n"
