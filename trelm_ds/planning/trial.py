"""One trial: `trelm pretrain` in processes of its own for a few steps, with limits on time and memory, then killed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trelm_ds import log
from trelm_ds.planning.verdict import Status, counts, measured, oom_kills, peak_bytes, too_late, verdict
from trelm_ds.run_folder import METRICS, read_metrics
from trelm_ds.stopping import STOP_SIGNALS

if TYPE_CHECKING:
    import psutil

LOG, RUN = "log.txt", "run"  # in the folder of a trial
_POLL_S = 0.1
_ORDER_S = 2.0  # in which the same signal reaches this process too
_KILLING_S = 30.0  # after which a process that does not end, as one in a driver, is left behind
_OWNER = "TRELM_TUNE"  # variable that all processes of a trial have, by which they are found however they were started
_CONFINED = Path(__file__).with_name("confined.py")
# What would make the trial a rank of another run, or its launcher write into another job's folder.
_OF_OTHERS = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}
_OF_OTHERS |= {"TORCHELASTIC_RUN_ID", "TRELM_EXIT_FOLDER", "TRELM_NODE_ADDRESSES"}


class Limits(NamedTuple):
    """What a trial may have.

    Attributes:
        steps: after which it is ended.
        seconds: from the start of its processes on.
        memory: bytes of each process; 0 for no limit.
    """

    steps: int
    seconds: float
    memory: int


class Outcome(NamedTuple):
    """What came of a trial.

    Attributes:
        reason: one line; "" where it is ok.
        steps: that it took.
        seconds: that it lasted.
        tokens_per_s: tokens of text, over all ranks, after the first quarter of the steps; None without such steps.
        peak_bytes: of a device that tensors took; on a CPU, of a process with its program. None without a step.
    """

    status: Status
    reason: str
    steps: int
    seconds: float
    tokens_per_s: float | None = None
    peak_bytes: int | None = None


class Stopped(Exception):
    """Raised where something has asked for the end."""


def pretrain_command(settings: Path, data: str, run: Path, ranks: int) -> list[str]:
    """Return the command that trains: torchrun, through our launcher, where there are several ranks."""
    program = ["-m", "trelm_ds", "pretrain", "--config", str(settings), "--data", data, "--out", str(run)]
    launcher = ["-m", "trelm_ds.cluster.launcher", "--standalone", f"--nproc-per-node={ranks}"]
    return [sys.executable, *(launcher if ranks > 1 else []), *program]


def run_trial(
    command: list[str], folder: Path, limits: Limits, owner: str, stopped: Callable[[], object] = lambda: False
) -> Outcome:
    """Run a command to the step that is wanted, its end or a limit; then kill all that is left of it.

    Args:
        command: trains in FOLDER/run, with a log point for every step, and writes no checkpoint before the last step
            that is wanted.
        folder: of the trial, to which the command's output goes as well.
        owner: name of whoever runs trials, one at a time: processes of that name are killed before and after.
        stopped: says whether something asks for the end.

    Raises:
        Stopped: `stopped` says so; the trial is killed.
        OSError: the folder cannot be written.
    """
    kill_trials(owner)
    killed_before = oom_kills()
    with (folder / LOG).open("wb") as output:
        confined = [sys.executable, "-I", str(_CONFINED), str(os.getpid()), str(limits.memory), *command]
        process = subprocess.Popen(
            confined, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, env=_environment(owner),
        )  # fmt: skip
    watch = _Watch(process, folder / RUN, limits)
    try:
        watch.until_done(stopped)
    finally:
        code = process.poll()
        kill_trials(owner)
        process.wait()
    watch.look()  # what it has written last
    if watch.steps < limits.steps and _asked_to_end(code, stopped):
        raise Stopped
    text = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    return _outcome(watch, code, text, limits, oom_killed=oom_kills() > killed_before)


def _asked_to_end(code: int | None, stopped: Callable[[], object]) -> bool:
    """Whether what asks for the end has ended the trial as well: Slurm signals all processes, in no certain order."""
    by_signal = code is not None and (-code in STOP_SIGNALS or code - 128 in STOP_SIGNALS)
    until = time.monotonic() + (_ORDER_S if by_signal else 0)
    while not stopped() and time.monotonic() < until:
        time.sleep(_POLL_S)
    return bool(stopped())


def _environment(owner: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _OF_OTHERS} | {_OWNER: owner}


class _Watch:
    """Follows a trial by its log points."""

    def __init__(self, process: subprocess.Popen[bytes], run: Path, limits: Limits) -> None:
        self._process, self._run, self._limits = process, run, limits
        self._started = self._moved = time.monotonic()
        self._size = 0
        self.points: list[dict[str, Any]] = []

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self._started

    @property
    def moving(self) -> bool:
        """Whether a step was taken in the second half of the time."""
        return self._moved - self._started > self._limits.seconds / 2

    @property
    def steps(self) -> int:
        """Steps taken, as far as they are wanted."""
        return min(int(self.points[-1]["step"]), self._limits.steps) if self.points else 0

    def look(self) -> None:
        """Read the log points, if there are new ones."""
        with contextlib.suppress(OSError):  # not there yet
            size = (self._run / METRICS).stat().st_size
            if size != self._size:
                before, self._size = self.steps, size
                self.points = [point for point in map(dict, read_metrics(self._run)) if counts(point)]
                self._moved = time.monotonic() if self.steps > before else self._moved

    def until_done(self, stopped: Callable[[], object]) -> None:
        """Wait for the last step that is wanted, the end of the program, or that of its time."""
        while self._process.poll() is None and self.steps < self._limits.steps and self.seconds < self._limits.seconds:
            if stopped():
                raise Stopped
            time.sleep(_POLL_S)
            self.look()


def _outcome(watch: _Watch, code: int | None, text: str, limits: Limits, oom_killed: bool) -> Outcome:
    status: Status
    if watch.steps >= limits.steps:
        status, reason = "ok", ""
    elif code is None:
        status, reason = too_late(text, watch.seconds, watch.steps, limits.steps, watch.moving)
    else:
        status, reason = verdict(text, code, oom_killed)
    speed = measured(watch.points, limits.steps)
    return Outcome(status, reason, watch.steps, round(watch.seconds, 1), speed, peak_bytes(watch.points))


def kill_trials(owner: str) -> None:
    """Kill all processes of that owner's trials, also those whose parents have ended, and wait until they are gone.

    Ranks are in sessions of their own and may outlive launcher and tuner, so they are known by a variable.
    """
    import psutil

    until = time.monotonic() + _KILLING_S
    while left := _processes_of(owner):
        if time.monotonic() > until:
            log.warning(f"process {left[0].pid} of a trial does not end; what follows may be slower for it")
            return
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=1)


def _processes_of(owner: str) -> list[psutil.Process]:
    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(_OWNER) == owner:
                found.append(process)
    return found
