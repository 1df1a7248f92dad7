"""What a trial came to, told from how its program ended and from what it has logged."""

from __future__ import annotations

import math
import re
import signal
from pathlib import Path
from typing import Any, Literal

from trelm_ds.visible import visible

Status = Literal["ok", "out of memory", "crashed", "hung", "too slow", "refused", "skipped"]

_MISTAKE, _HANG = 2, 71  # exit codes of `trelm pretrain`
_LONGEST = 240  # characters of a reason
# What torch's allocators, Python, numpy, C++, threads and the system say where memory is used up.
_NO_MEMORY = re.compile(
    r"OutOfMemoryError|out of memory|can't allocate memory|not enough memory|Cannot allocate memory|\bMemoryError\b|"
    r"Unable to allocate|std::bad_alloc|can't start new thread|Thread creation failed",
    re.IGNORECASE,
)
_ERROR = re.compile(r"^(\[rank\d+\]: *)?[\w.]*(Error|Exception|Interrupt)\b")  # the end of a traceback


def verdict(log: str, code: int, oom_killed: bool) -> tuple[Status, str]:
    """Say why a program has ended before its time, and in one line how that is known.

    Args:
        log: what it has printed.
        code: its exit code; -n by signal n.
        oom_killed: whether the system has killed a process meanwhile since memory was used up.
    """
    lines = [visible(line).strip() for line in log.splitlines() if line.strip()]
    if code == _MISTAKE:
        return "refused", _shortened(_last_error(lines))
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL) and oom_killed:
        return "out of memory", "killed by the system, whose memory was used up"
    if at_fault := [line for line in lines if _NO_MEMORY.search(line)]:
        return "out of memory", _shortened(_last_error(at_fault))
    if code == _HANG:
        return "hung", _shortened(_last_error(lines))
    if code < 0 and not any(map(_is_error, lines)):
        return "crashed", f"ended by {signal.Signals(-code).name}"
    return "crashed", _shortened(_last_error(lines) or f"exit code {code}, and nothing in the log")


def too_late(log: str, seconds: float, steps: int, wanted: int, moving: bool) -> tuple[Status, str]:
    """Say what a program is that was not done in its time.

    Args:
        seconds: that it had.
        steps: it has taken, of those `wanted`.
        moving: whether it took one of late.
    """
    if moving:
        return "too slow", f"{steps} of {wanted} steps in {seconds:.0f} s"
    last = next((visible(line).strip() for line in reversed(log.splitlines()) if line.strip()), "nothing")
    return "hung", _shortened(f"no step after step {steps}, ended after {seconds:.0f} s; last said: {last}")


def oom_kills() -> int:
    """Return how many processes this machine has killed for want of memory, its own or a group's; 0 if unknown."""
    try:
        counted = Path("/proc/vmstat").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"^oom_kill (\d+)$", counted, re.MULTILINE)
    return int(found[1]) if found else 0


def _is_error(line: str) -> bool:
    return line.startswith("trelm: error: ") or _ERROR.match(line) is not None


def _last_error(lines: list[str]) -> str:
    """Return the last line that states an error, else the last one."""
    return next((line for line in reversed(lines) if _is_error(line)), lines[-1] if lines else "")


def _shortened(line: str) -> str:
    line = re.sub(r"^(\[rank\d+\]: *|trelm: error: )", "", line)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def counts(point: dict[str, Any]) -> bool:
    """Whether a log point says what it must: which step it is of, and how fast that was."""
    speeds = [point.get(name, math.nan) for name in ("sequences_per_s", "sequence_tokens_per_s")]
    return isinstance(point["step"], int) and all(0 < speed < math.inf for speed in speeds)


def measured(points: list[dict[str, Any]], steps: int) -> float | None:
    """Return the speed in tokens of text per second, over all ranks, after the first quarter of the steps.

    Args:
        points: log points that count, one for each step.

    Returns:
        None where no step counts.
    """
    counted = [point for point in points if steps // 4 < point["step"] <= steps]
    # Steps have equally many sequences, so a step's time is inverse to their rate.
    times = [1 / point["sequences_per_s"] for point in counted]
    tokens = [point["sequence_tokens_per_s"] * time for point, time in zip(counted, times, strict=True)]
    return sum(tokens) / sum(times) if counted else None


def peak_bytes(points: list[dict[str, Any]]) -> int | None:
    """Return the most memory that tensors took of a GPU; on a CPU what a process had resident, program included."""
    peaks = [point.get("peak_memory_gb", point.get("peak_resident_gb")) for point in points]
    return max((round(1e9 * peak) for peak in peaks if peak is not None and math.isfinite(peak)), default=None)
