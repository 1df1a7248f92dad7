"""A part of what tools/fuzz.py tries, and that it notices what it looks for."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.forked import run
from tools import fuzz
from trelm_ds.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_no_reader_fails() -> None:
    done = run([str(ROOT / "tools" / "fuzz.py"), "--inputs", "975", "--seed", "1"])
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("975 inputs, 0 findings \n")


@pytest.mark.parametrize(
    ("does", "found"),
    [
        ("raise KeyError('x')", "KeyError: 'x'"),
        ("raise UserError('a\\nb')", "a message of several lines"),
        ("os.system('true')", "os.system"),
        ("subprocess.run(['true'])", "subprocess.Popen"),
        ("pickle.loads(pickle.dumps(Path))", "pickle.find_class"),
        ("open('/tmp/outside', 'w')", "open '/tmp/outside'"),
        ("time.sleep(9)", "more than 1 seconds"),
        ("raise UserError('one line')", None),
        ("open(folder / 'inside', 'w').close()", None),
    ],
)
def test_what_is_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, guard: fuzz.Guard, does: str, found: str | None
) -> None:
    def reader(_: random.Random, folder: Path) -> None:
        exec(does, {"UserError": UserError, "folder": folder} | MODULES)

    monkeypatch.setitem(fuzz.KINDS, "dump", reader)
    monkeypatch.setattr(fuzz, "LIMIT_S", 1)
    monkeypatch.setattr(guard, "_folder", str(tmp_path))
    problem = fuzz.finding("dump", 0, 0, tmp_path, guard)
    assert (found in problem) if found and problem else problem is found


MODULES = {"os": os, "subprocess": subprocess, "pickle": pickle, "Path": Path, "time": time, "sys": sys}


@pytest.fixture(scope="module")
def guard() -> fuzz.Guard:
    """One for all: an audit hook stays for as long as the process lives."""
    import signal

    signal.signal(signal.SIGALRM, fuzz._too_long)
    return fuzz.Guard(Path("/nowhere"))
