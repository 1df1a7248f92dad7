"""Trials in processes of their own, whatever these do."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.forked import environment
from tests.planning.made_plans import points, training
from trelm_ds.planning.trial import (
    _CONFINED,
    LOG,
    RUN,
    Limits,
    Outcome,
    Stopped,
    kill_trials,
    pretrain_command,
    run_trial,
)

LONG = 300.0
GIB = 2**30
_SLEEP = "time.sleep(10_000)"


def tried(folder: Path, steps: int, then: str, seconds: float = LONG, memory: int = 0) -> Outcome:
    return run_trial(training(folder / RUN, steps, then), folder, Limits(8, seconds, memory), str(folder))


def left(folder: Path) -> list[int]:
    """Processes that have to do with a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_it_is_ended_at_the_step_that_is_wanted(tmp_path: Path) -> None:
    outcome = tried(tmp_path, 8, _SLEEP)
    assert outcome[:3] == ("ok", "", 8)
    assert outcome.tokens_per_s == pytest.approx(1000.0)
    assert outcome.peak_bytes == 500_000_000
    assert left(tmp_path) == []


def test_children_in_sessions_of_their_own_are_killed_too(tmp_path: Path) -> None:
    """As torchrun starts its ranks."""
    then = f"import subprocess\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(9e4)', '{tmp_path}'],"
    then += f" start_new_session=True)\nrun.joinpath('started').touch()\n{_SLEEP}"
    outcome = run_trial(training(tmp_path / RUN, 3, then), tmp_path, Limits(8, 4.0, 0), str(tmp_path))
    assert (tmp_path / RUN / "started").exists()
    assert outcome.steps == 3
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("steps", "then", "status", "reason"),
    [
        (3, "raise ValueError('this one')", "crashed", "ValueError: this one"),
        (0, "print('trelm: error: --data: wrong'); sys.exit(2)", "refused", "--data: wrong"),
        (3, "import os; os.kill(os.getpid(), 11)", "crashed", "ended by SIGSEGV"),
        (3, "", "crashed", "exit code 0, and nothing in the log"),
        (8, "raise ValueError('behind the last step that counts')", "ok", ""),
    ],
)
def test_what_ends_by_itself(tmp_path: Path, steps: int, then: str, status: str, reason: str) -> None:
    outcome = tried(tmp_path, steps, then)
    assert outcome[:3] == (status, reason, steps)


def test_what_hangs_and_what_is_slow(tmp_path: Path) -> None:
    (tmp_path / "hangs").mkdir()
    outcome = tried(tmp_path / "hangs", 2, f"print('waiting for others', flush=True)\n{_SLEEP}", seconds=2.0)
    assert (outcome.status, outcome.steps) == ("hung", 2)
    assert outcome.reason.startswith("no step after step 2, ended after ")
    assert outcome.reason.endswith("last said: waiting for others")
    (tmp_path / "slow").mkdir()
    later = "time.sleep(3.5)\nwith (run / 'metrics.jsonl').open('a') as metrics:\n"
    later += f"    print(json.dumps(point | {{'step': 2}}), file=metrics, flush=True)\n{_SLEEP}"
    outcome = tried(tmp_path / "slow", 1, later, seconds=6.0)
    assert (outcome.status, outcome.steps) == ("too slow", 2)


def test_memory_is_limited_and_the_failure_is_known(tmp_path: Path) -> None:
    within = "held = bytearray(100 << 20)\ntime.sleep(0.3)\n"
    outcome = tried(tmp_path, 2, f"{within}more = bytearray(600 << 20)", memory=GIB // 2)
    assert outcome[:3] == ("out of memory", "MemoryError", 2)
    (tmp_path / "again").mkdir()
    assert tried(tmp_path / "again", 8, f"{within}more = bytearray(600 << 20)").status == "ok"


def test_a_limit_that_cannot_be_is_the_largest_that_can(tmp_path: Path) -> None:
    assert tried(tmp_path, 8, _SLEEP, memory=1 << 90).status == "ok"
    shown = "import resource; print(resource.getrlimit(resource.RLIMIT_DATA)[0] >> 30)"
    confined = [sys.executable, "-I", str(_CONFINED), str(os.getpid()), str(9 * GIB), sys.executable, "-c", shown]
    of_shell = (resource.RLIMIT_DATA, (7 * GIB, 7 * GIB))
    found = subprocess.run(confined, stdout=subprocess.PIPE, preexec_fn=lambda: resource.setrlimit(*of_shell))
    assert found.stdout == b"7\n"


@pytest.mark.parametrize(
    "wrong",
    [
        "del point['sequences_per_s']",
        "point['sequences_per_s'] = 0",
        "point['sequence_tokens_per_s'] = float('nan')",
        "point['step'] = float('nan')",
        "point['step'] = float('inf')",
    ],
)
def test_log_points_that_say_nothing_are_none(tmp_path: Path, wrong: str) -> None:
    then = f"point['step'] = 8\n{wrong}\nwith (run / 'metrics.jsonl').open('a') as metrics:\n"
    outcome = tried(tmp_path, 3, f"{then}    print(json.dumps(point), file=metrics)")
    assert outcome[:3] == ("crashed", "exit code 0, and nothing in the log", 3)
    assert outcome.tokens_per_s == pytest.approx(1000.0)


def test_a_stop_kills_it(tmp_path: Path) -> None:
    def stopped() -> bool:
        return (tmp_path / RUN / "metrics.jsonl").exists() and len(points(tmp_path / RUN)) == 2

    with pytest.raises(Stopped):
        run_trial(training(tmp_path / RUN, 2, _SLEEP), tmp_path, Limits(8, LONG, 0), str(tmp_path), stopped)
    assert left(tmp_path) == []


def test_a_signal_to_all_is_a_stop_and_no_crash(tmp_path: Path) -> None:
    """The trial may be dead of it before this process has heard of it."""
    then = "import os, signal; (run / 'over').touch(); os.kill(os.getpid(), signal.SIGUSR1)"
    heard: list[bool] = []

    def late() -> bool:
        heard.append((tmp_path / RUN / "over").exists())
        return sum(heard) > 3

    with pytest.raises(Stopped):
        run_trial(training(tmp_path / RUN, 2, then), tmp_path, Limits(8, LONG, 0), str(tmp_path), late)
    (tmp_path / "other").mkdir()
    assert tried(tmp_path / "other", 2, then)[:2] == ("crashed", "ended by SIGUSR1")


def test_it_ends_with_the_process_that_runs_it(tmp_path: Path) -> None:
    """Also where that is killed; and what it has left in other sessions is known by the next."""
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.planning.made_plans import training
from trelm_ds.planning.trial import Limits, run_trial
folder = Path({str(tmp_path)!r})
then = "import subprocess; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(9e4)', str(run)],"
then += " start_new_session=True); (run / 'started').touch(); time.sleep(9e4)"
run_trial(training(folder / "run", 1, then), folder, Limits(8, 600.0, 0), "the owner of " + str(folder))
"""
    tuner = subprocess.Popen([sys.executable, "-c", script], env=environment(), start_new_session=True)
    deadline = time.monotonic() + LONG
    while not (tmp_path / RUN / "started").exists():
        assert tuner.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    tuner.send_signal(signal.SIGKILL)
    tuner.wait()
    while len(left(tmp_path)) > 1:  # the trial itself goes at once, its child stays
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(left(tmp_path)) == 1
    kill_trials("somebody else")
    assert len(left(tmp_path)) == 1
    kill_trials(f"the owner of {tmp_path}")
    assert left(tmp_path) == []


def test_it_is_no_rank_of_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TRELM_EXIT_FOLDER"):
        monkeypatch.setenv(name, "70707")
    monkeypatch.setenv("KEPT", "70707")
    tried(tmp_path, 0, "import os\nprint([name for name, value in os.environ.items() if value == '70707'])")
    assert (tmp_path / LOG).read_text() == "['KEPT']\n"
    assert os.environ["RANK"] == "70707"


def test_several_ranks_have_a_launcher(tmp_path: Path) -> None:
    alone, together = (pretrain_command(tmp_path / "s.yaml", "D", tmp_path / RUN, ranks) for ranks in (1, 2))
    assert alone[1:4] == ["-m", "trelm_ds", "pretrain"]
    assert together[1:5] == ["-m", "trelm_ds.cluster.launcher", "--standalone", "--nproc-per-node=2"]
    assert together[5:] == alone[1:]
