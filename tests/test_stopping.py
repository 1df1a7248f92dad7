"""What asks a run to stop, and with which exit code it then ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from trelm_ds.stopping import FILE, ORPHANED, TIME, StopRequests, StopSignals, describe, exit_code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_is_noted_and_the_handlers_are_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.received == 0
        os.kill(os.getpid(), number)
        assert signals.received == number
    assert signal.getsignal(number) is before


def test_under_nohup_a_closed_terminal_is_no_reason() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_interrupt_is_immediate() -> None:
    with StopSignals(), pytest.raises(KeyboardInterrupt):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_the_file_stands_until_the_run_has_ended(tmp_path: Path) -> None:
    """A run that is killed on its way to the end, and started again, is still asked to stop."""
    requests = StopRequests(StopSignals(), tmp_path, None, watch_file=True)
    assert requests.reason() == 0
    requests.answered()
    (tmp_path / "stop").touch()
    assert requests.reason() == FILE
    assert StopRequests(StopSignals(), tmp_path, None, watch_file=True).reason() == FILE
    requests.answered()
    assert not (tmp_path / "stop").exists()  # the same command then goes on


def test_another_rank_leaves_the_file_alone(tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    requests = StopRequests(StopSignals(), tmp_path, None, watch_file=False)
    assert requests.reason() == 0
    requests.answered()
    assert (tmp_path / "stop").exists()


def test_the_time_limit_counts_from_the_start(tmp_path: Path) -> None:
    assert StopRequests(StopSignals(), tmp_path, 60.0, watch_file=False).reason() == 0
    assert StopRequests(StopSignals(), tmp_path, 1e-9, watch_file=False).reason() == TIME


def test_a_rank_whose_launcher_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = StopRequests(StopSignals(), tmp_path, None, watch_file=False)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a launcher's")
    launched = StopRequests(StopSignals(), tmp_path, None, watch_file=False)
    assert launched.reason() == 0
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert (alone.reason(), launched.reason()) == (0, ORPHANED)  # nohup and a closed terminal are no reason


def test_exit_codes_and_words() -> None:
    assert [exit_code(reason) for reason in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == [130, 143, 138]
    assert [exit_code(reason) for reason in (signal.SIGHUP, signal.SIGQUIT)] == [129, 131]
    assert (exit_code(TIME), exit_code(FILE), exit_code(ORPHANED)) == (75, 130, 129)
    assert [describe(reason) for reason in (15, TIME, FILE)] == ["signal 15", "trainer.max_minutes", "the file 'stop'"]
