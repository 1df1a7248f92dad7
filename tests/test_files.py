"""Files that are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from trelm_ds.errors import UserError
from trelm_ds.files import lock, waiting_lock, write_atomically


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "taken", "text")
    write_atomically(tmp_path / "file", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]
    assert (tmp_path / "file").read_text() == "text"


def test_a_lock_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the folder cannot be written: No such file or directory"):
        lock(tmp_path / "nowhere" / ".lock", "the folder").__enter__()


def test_a_lock_is_waited_for_as_long_as_one_likes(tmp_path: Path) -> None:
    with waiting_lock(tmp_path / "lock"), pytest.raises(TimeoutError), waiting_lock(tmp_path / "lock", 0.1):
        pass
    with waiting_lock(tmp_path / "lock", 0.1), waiting_lock(tmp_path / "nowhere" / "lock", 0.1):
        pass
