"""Why a trial has ended, told from its exit code and log."""

from __future__ import annotations

import signal

import pytest

from trelm_ds.planning.verdict import measured, oom_kills, peak_bytes, too_late, verdict

_TRACE = "Traceback (most recent call last):\n  File ...\n"
_TORCH = (
    "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
    "to allocate 167329792 bytes. Error code 12 (Cannot allocate memory)"
)
_CUDA = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB."


@pytest.mark.parametrize(
    ("log", "code", "oom_killed", "status", "reason"),
    [
        (f"{_TRACE}{_TORCH}\n", 1, False, "out of memory", _TORCH),
        (f"{_TRACE}[rank0]: {_CUDA}\n", 1, False, "out of memory", _CUDA),
        (
            f"trelm: error: rank 1 on n1: {_CUDA}\ntrelm: rank 0 ends because of rank 1\n"
            "trelm launcher: exit codes on n1: rank 0 1, rank 1 1\n",
            1,
            False,
            "out of memory",
            f"rank 1 on n1: {_CUDA}",
        ),
        (
            f"[rank1]: {_TORCH}\ntrelm: rank 0 ends because of rank 1 on n1: {_TORCH}\n",
            1,
            False,
            "out of memory",
            _TORCH,
        ),
        (f"{_TRACE}MemoryError\n", 1, False, "out of memory", "MemoryError"),
        (
            "terminate called after throwing std::bad_alloc\n",
            -6,
            False,
            "out of memory",
            "terminate called after throw",
        ),
        ("pretrain: 3/10\n", -9, True, "out of memory", "killed by the system, whose memory was used up"),
        ("pretrain: 3/10\n", 137, True, "out of memory", "killed by the system, whose memory was used up"),
        ("pretrain: 3/10\n", -9, False, "crashed", "ended by SIGKILL"),
        ("pretrain: 3/10\n", -11, True, "crashed", "ended by SIGSEGV"),
        (
            f"{_TRACE}[rank0]: ValueError: no such thing\nwarning: more\n",
            1,
            False,
            "crashed",
            "ValueError: no such thing",
        ),
        ("trelm: error: --data: is no dataset\n", 2, False, "refused", "--data: is no dataset"),
        ("trelm: error: out of memory is a dataset\n", 2, False, "refused", "out of memory is a dataset"),
        ("trelm: error: nothing has moved for 9 s\n", 71, False, "hung", "nothing has moved for 9 s"),
        ("", 1, False, "crashed", "exit code 1, and nothing in the log"),
        ("something\x1b[2J odd\n\n", 3, False, "crashed", "something\\x1b[2J odd"),
    ],
)
def test_ends(log: str, code: int, oom_killed: bool, status: str, reason: str) -> None:
    found = verdict(log, code, oom_killed)
    assert found[0] == status
    assert found[1].startswith(reason)
    assert "\n" not in found[1]


def test_a_reason_is_short() -> None:
    _, reason = verdict("ValueError: " + 1000 * "x", 1, False)
    assert len(reason) == 240
    assert reason.endswith("...")


def test_what_does_not_end_hangs_or_is_slow() -> None:
    assert too_late("pretrain: 3/10\n", 60.0, 3, 20, moving=True) == ("too slow", "3 of 20 steps in 60 s")
    status, reason = too_late("loading\n\n", 60.0, 0, 20, moving=False)
    assert (status, reason) == ("hung", "no step after step 0, ended after 60 s; last said: loading")


def test_only_steps_after_the_first_quarter_count() -> None:
    points = [
        {"step": 1, "sequences_per_s": 1.0, "sequence_tokens_per_s": 10.0},
        {"step": 2, "sequences_per_s": 10.0, "sequence_tokens_per_s": 100.0},  # with 10 sequences: 1 s, 100 tokens
        {"step": 3, "sequences_per_s": 5.0, "sequence_tokens_per_s": 30.0},  # 2 s, 60 tokens
        {"step": 4, "sequences_per_s": 10.0, "sequence_tokens_per_s": 100.0},  # 1 s, 100 tokens
        {"step": 5, "sequences_per_s": 99.0, "sequence_tokens_per_s": 999.0},  # more than wanted
    ]
    assert measured(points, 4) == pytest.approx(260 / 4)
    assert measured(points[:1], 4) is None


def test_the_peak_is_a_gpus_where_there_is_one() -> None:
    assert peak_bytes([]) is None
    assert peak_bytes([{"peak_resident_gb": 2.0}, {"peak_resident_gb": 3.0}]) == 3_000_000_000
    assert peak_bytes([{"peak_resident_gb": float("nan")}, {"peak_resident_gb": 3.0}]) == 3_000_000_000
    assert peak_bytes([{"peak_resident_gb": 9.0, "peak_memory_gb": 1.5}]) == 1_500_000_000


def test_the_systems_kills_are_counted() -> None:
    assert oom_kills() >= 0
    assert signal.SIGKILL == 9
