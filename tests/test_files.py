"""Files that are whole or not there."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trelm_ds.errors import UserError
from trelm_ds.files import load_array, lock, open_binary, read_json, waiting_lock, write_atomically


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_atomically(tmp_path / "taken", "text")
    assert caught.value.filename == str(tmp_path / "taken")
    write_atomically(tmp_path / "file", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]
    assert (tmp_path / "file").read_text() == "text"


def test_a_lock_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the folder cannot be written: No such file or directory"):
        lock(tmp_path / "nowhere" / ".lock", "the folder").__enter__()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_no_lock_holds_nobody_writes_unless_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def none(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(UserError, match=r"RUN: its file system has no locks .* or set TRELM_NO_LOCKS=1"):
        lock(tmp_path / ".lock", "--out: RUN").__enter__()
    assert not (tmp_path / ".lock").exists()
    monkeypatch.setenv("TRELM_NO_LOCKS", "1")
    with lock(tmp_path / ".lock", "--out: RUN"):
        assert (tmp_path / ".lock").exists()
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}", '{"a": 1} x', "\ufeff[1"])
def test_json_that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"x.json(:\d+)?: not valid JSON") as error:
        read_json(tmp_path / "x.json")
    assert "\n" not in str(error.value)


def test_a_lock_is_waited_for_as_long_as_one_likes(tmp_path: Path) -> None:
    with waiting_lock(tmp_path / "lock"), pytest.raises(TimeoutError), waiting_lock(tmp_path / "lock", 0.1):
        pass
    with waiting_lock(tmp_path / "lock", 0.1), waiting_lock(tmp_path / "nowhere" / "lock", 0.1):
        pass


@pytest.mark.parametrize(("number", "passes"), [(errno.EACCES, False), (errno.ESTALE, True), (errno.EIO, True)])
@pytest.mark.parametrize("read", [read_json, load_array, open_binary])
def test_a_file_that_cannot_be_read_may_be_another_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object], number: int, passes: bool
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path / "x"))

    monkeypatch.setattr("builtins.open", fail)
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(UserError, match=f"x: cannot be read: {os.strerror(number)}") as error:
        read(tmp_path / "x")
    assert error.value.passes is passes


def test_an_error_passes_as_its_cause_does() -> None:
    assert not UserError("a mistake").passes
    assert not UserError.because("no right", OSError(errno.EACCES, "denied")).passes
    assert UserError.because("no server", OSError(errno.ESTALE, "stale")).passes
