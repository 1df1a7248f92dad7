"""Fork processes from one that has imported everything (tests/preloaded.py): a start costs a moment, not ten seconds.

They are processes of their own: with their environment, output, signals and exit code, and they can be killed. What a
fork cannot show is how a start itself goes (imports, PYTHONPATH, the launcher), so some tests use the real command.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import random
import runpy
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
_OF_A_PROCESS_GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["tests.preloaded"])


def environment() -> dict[str, str]:
    # The fixture `one_rank` leaves its process group's variables behind; a command is to make a group of its own.
    return {name: value for name, value in os.environ.items() if name not in _OF_A_PROCESS_GROUP} | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }


def free_port() -> int:
    """Find a port that nobody listens on, below those that the kernel gives to connections by itself.

    One of those (a socket bound to port 0) may go to another process before it is listened on.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def start(process: Any) -> None:
    """Start a process of the context FORKED; the first one starts the server."""
    before = dict(os.environ)
    os.environ.update(environment())  # which the server keeps
    try:
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)


class Command:
    """Run `trelm`, or a script of tools/, in a forked process, with the methods of subprocess.Popen that tests need.

    Args:
        arguments: arguments of `trelm`, or a script and its arguments.
        ranks: processes with torchrun's environment, children of one that waits for them and ends the others when one
            has failed, with exit code 1; 0 for the command alone.
        changes: changes of the environment.
        together: whether stderr goes where stdout goes.
    """

    def __init__(
        self, arguments: list[str], ranks: int = 0, changes: Mapping[str, str] | None = None, together: bool = False
    ) -> None:
        self.args = arguments
        self._output = tempfile.TemporaryDirectory()
        self._files = [Path(self._output.name) / name for name in ("out", "out" if together else "errors")]
        for file in self._files:
            file.touch()
        settings = (environment() | dict(changes or {}), os.getcwd(), *map(str, self._files))
        self._process: Any = FORKED.Process(target=_command, args=(settings, ranks, arguments))
        start(self._process)
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            assert timeout is not None
            raise TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        out, errors = (file.read_text() for file in self._files)
        return out, errors

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process and all that it has started."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)


def run(arguments: list[str], ranks: int = 0, timeout: float = 300, **changes: str) -> CompletedProcess[str]:
    """Run a command to its end, like subprocess.run."""
    process = Command(arguments, ranks, changes)
    try:
        out, errors = process.communicate(timeout)
    finally:
        process.kill()
    return CompletedProcess(arguments, process.wait(), out, errors)


# --- In the forked process ---
def _command(settings: tuple[dict[str, str], str, str, str], ranks: int, arguments: list[str]) -> NoReturn:
    variables, folder, out, errors = settings
    os.setsid()
    for place, file in ((out, sys.stdout), (errors, sys.stderr)):
        file.flush()
        opened = os.open(place, os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, file.fileno())
        os.close(opened)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    if not ranks:
        _main(arguments)
    # torch.distributed.run's; there the store is the launcher's, here rank 0's, which is what the other ranks miss.
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"TORCHELASTIC_RUN_ID": "forked", "LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0"}
    fork = multiprocessing.get_context("fork")
    started = [fork.Process(target=_rank, args=(rank, shared, arguments)) for rank in range(ranks)]
    for process in started:
        process.start()
    running = list(started)
    while running and not any(process.exitcode for process in started):
        wait([process.sentinel for process in running])
        running = [process for process in running if process.exitcode is None]
    for process in running:
        process.terminate()
    for process in running:
        process.join(30)
        process.kill()
        process.join()
    sys.exit(1 if any(process.exitcode for process in started) else 0)


def _rank(rank: int, shared: dict[str, str], arguments: list[str]) -> NoReturn:
    os.environ.update(shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "ROLE_RANK": str(rank)})
    _main(arguments)


def _main(arguments: list[str]) -> NoReturn:
    """Run and end as `python -m trelm_ds ARGUMENTS`, or `python SCRIPT.py ARGUMENTS`, would."""
    from trelm_ds import cli

    script = arguments[0].endswith(".py") if arguments else False
    sys.argv = arguments if script else [str(ROOT / "trelm_ds" / "__main__.py"), *arguments]
    code: Any = 1
    try:
        if script:
            sys.path.insert(0, str(Path(arguments[0]).parent))
            runpy.run_path(arguments[0], run_name="__main__")
        else:
            cli.main()
        code = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    atexit._run_exitfuncs()
    sys.exit(code)
