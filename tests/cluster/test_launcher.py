"""The launcher: real torchrun, real processes; what it says and ends with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.launch import environment
from tests.forked import free_port
from trelm_ds.cluster.launcher import _interface_of

LAUNCHER = [sys.executable, "-m", "trelm_ds.cluster.launcher", "--standalone", "--no-python", "--nproc-per-node"]


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        (("exit 0", "exit 0"), 0),
        (("exit 7",), 7),
        (("exit 1", "exit 2"), 2),
        (("exit 71", "exit 1"), 71),
        (("exit 75", "exit 75"), 75),
        (("kill -KILL $BASHPID", "sleep 100"), 137),
    ],
)
def test_it_ends_as_its_ranks_end(tmp_path: Path, ends: tuple[str, ...], code: int) -> None:
    # Those that end by themselves are gone before torchrun looks at them.
    command = [*LAUNCHER, str(len(ends)), "--monitor-interval=3", "bash", "-c", _case(ends)]
    more = {"TRELM_EXIT_FOLDER": str(tmp_path), "SLURM_NODEID": "4"}
    done = subprocess.run(command, env=environment() | more, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "4").read_text() == f"{code}\n"
    assert "Traceback" not in done.stderr
    if code:
        assert done.stderr.splitlines()[-1].startswith("trelm launcher: exit codes on ")
        assert f"rank 0 {code}" in done.stderr or f"rank 1 {code}" in done.stderr


def test_a_launcher_that_loses_another_says_so(tmp_path: Path) -> None:
    """The one that keeps the store of both ends first, as when its rank is the first to answer a stop file."""
    port = free_port()
    (tmp_path / "exit").mkdir()
    meeting = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
    ends = f"touch {tmp_path}/$RANK; until [ -f {tmp_path}/0 ] && [ -f {tmp_path}/1 ]; do sleep 0.1; done; {{}}"
    processes = []
    for node, end in enumerate(("exit 130", "sleep 100")):
        command = [sys.executable, "-m", "trelm_ds.cluster.launcher", *meeting, f"--rdzv-conf=is_host={node == 0}"]
        more = {"TRELM_EXIT_FOLDER": str(tmp_path / "exit"), "SLURM_NODEID": str(node)}
        script = ["--no-python", "bash", "-c", ends.format(end)]
        processes.append(subprocess.Popen([*command, *script], env=environment() | more, stderr=-1, text=True))
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [130, 1]
    assert said[1].splitlines()[-1] == "trelm launcher: has lost the launcher of another node"
    assert "Traceback" not in said[0] + said[1]
    assert [(tmp_path / "exit" / name).read_text() for name in "01"] == ["130\n", "1\n"]


def _case(ends: tuple[str, ...]) -> str:
    return f"case $RANK in {' '.join(f'{rank}) {end};;' for rank, end in enumerate(ends))} esac"


def test_a_signal_reaches_the_ranks(tmp_path: Path) -> None:
    trap = f"trap 'echo $RANK >>{tmp_path}/told; exit 138' USR1"
    script = f"{trap}; touch {tmp_path}/ready-$RANK; while true; do sleep 0.1; done"
    command = [*LAUNCHER, "2", "bash", "-c", script]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("ready-*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGUSR1)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGUSR1
    assert sorted((tmp_path / "told").read_text().split()) == ["0", "1"]
    assert said.splitlines()[-1] == "trelm launcher: ended by SIGUSR1"
    assert "Traceback" not in said


def test_gloo_takes_the_card_that_slurm_names() -> None:
    assert _interface_of("127.0.0.1") == "lo"
    assert _interface_of("192.0.2.1") is None  # an address for examples
    more = {"TRELM_NODE_ADDRESSES": "n1=192.0.2.1 n2=127.0.0.1", "SLURMD_NODENAME": "n2"}
    clean = {name: value for name, value in os.environ.items() if name != "GLOO_SOCKET_IFNAME"}
    command = [*LAUNCHER, "1", "bash", "-c", "echo card=$GLOO_SOCKET_IFNAME"]
    done = subprocess.run(command, env=clean | environment() | more, capture_output=True, text=True, timeout=120)
    assert "card=lo" in done.stdout, done.stderr
