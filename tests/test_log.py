from __future__ import annotations

import socket
import subprocess
import sys
import warnings

import pytest

from trelm_ds import log


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    said = capsys.readouterr()
    assert said.out == ""
    return said.err.splitlines()


def test_levels_decide_how_a_line_begins(capsys: pytest.CaptureFixture[str]) -> None:
    log.debug("unseen")
    log.info("50% done  now")
    log.warning("a path,\n  with a break")
    log.error("--out: is missing")
    assert lines(capsys) == ["50% done  now", "warning: a path, with a break", "trelm: error: --out: is missing"]


def test_other_ranks_say_who_they_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    log.setup(distributed=True)
    log.info("loss 1.0")
    log.error("rank 3: out of memory")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    log.warning("slow")
    log.info_rank0("never")
    log.warning_rank0("never")
    where = f"[rank 3 on {socket.gethostname()}]"
    assert lines(capsys) == ["[rank 3] loss 1.0", "trelm: error: rank 3: out of memory", f"{where} warning: slow"]
    monkeypatch.setenv("RANK", "0")
    log.info_rank0("loss 1.0")
    log.warning_rank0("slow")
    assert lines(capsys) == ["loss 1.0", "warning: slow"]


@pytest.mark.parametrize(("distributed", "rank"), [(False, "3"), (True, "worker")])
def test_a_rank_that_is_none_silences_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, distributed: bool, rank: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    log.setup(distributed)
    log.info_rank0("loss 1.0")
    log.warning_rank0("slow")
    assert lines(capsys) == ["loss 1.0", "warning: slow"]


def test_what_a_terminal_would_obey_is_spelled_out(capsys: pytest.CaptureFixture[str]) -> None:
    log.info("a title: \x1b]0;owned\x07")
    log.error("no such\nsetting '\x1b[2J'")
    assert lines(capsys) == ["a title: \\x1b]0;owned\\x07", "trelm: error: no such setting '\\x1b[2J'"]


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(5, "gone"), ValueError("I/O operation on closed file")])
def test_a_reader_that_is_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    class Gone:
        def write(self, _: str) -> None:
            raise error

    monkeypatch.setattr(sys, "stderr", Gone())
    log.info("loss 1.0")
    log.warning("slow")


def test_a_warning_may_come_once(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("a", "b", "a"):
        log.warning_once(text)
    assert lines(capsys) == ["warning: a", "warning: b"]


def test_passwords_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    for say in (log.info, log.warning, log.error):
        say("http://me:geheim@host does not answer")
    assert len(said := lines(capsys)) == 3
    assert all("http://...@host" in line and "geheim" not in line for line in said)


def test_of_libraries_only_warnings_for_users_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup()
    warnings.simplefilter("always")
    warnings.warn("lr_scheduler.step() came first", UserWarning, stacklevel=1)
    warnings.warn("deprecated", DeprecationWarning, stacklevel=1)
    warnings.warn("old", FutureWarning, stacklevel=1)
    assert lines(capsys) == ["warning: lr_scheduler.step() came first"]


def test_it_is_there_before_torch() -> None:
    command = "import sys, trelm_ds.log; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0


def test_a_crash_tells_no_password() -> None:
    program = "from trelm_ds import log; log.setup(); raise OSError('https://me:geheim@host/x?token=geheim is gone')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert done.stderr.endswith("OSError: https://...@host/x?token=... is gone\n")
