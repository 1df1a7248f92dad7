"""Record some steps with torch's profiler: what CPU and GPU of every rank did when, and where memory went."""

from __future__ import annotations

import contextlib
import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from trelm_ds import log
from trelm_ds.distributed import Ranks
from trelm_ds.files import write_atomically
from trelm_ds.training.component import Component

FOLDER = "profile"  # in the run folder
_MEMORY_EVENTS = 100_000  # the last allocations and releases that a snapshot knows, some KB each
_PUBLISHED_RANKS = 8  # of more, the files stay in the run folder: their upload would hold up metrics


class Profiling(Component):
    """Records a window of steps on every rank, each from its reading to the update of the memory bank.

    A window is recorded whole or not at all: a start that begins within it, a stop and a failure leave nothing behind.
    The files are written at the log point that follows. Training itself does not notice.

    Args:
        window: steps to record, counted from 1.
        run: the run folder.
        steps_done: steps done before this start.
        ranks: all that train.
        publish: brings a file of the run folder, by its name there, to MLflow; rank 0 alone has it.
    """

    def __init__(
        self, window: range, run: Path, steps_done: int, ranks: Ranks, publish: Callable[[str], None] | None
    ) -> None:
        self._window, self._run, self._ranks, self._publish = window, run, ranks, publish
        self._steps_done = steps_done
        self._recording: Recording | None = None
        self._done: Recording | None = None  # recorded, not yet written
        self._step = steps_done

    def begin(self) -> None:
        """Remove what a killed process has left of a file, and say what will be recorded."""
        folder, window = self._run / FOLDER, self._window
        for left in folder.glob(f".rank-{self._ranks.rank}.*.tmp"):
            left.unlink(missing_ok=True)
        if self._steps_done < window.start:
            log.info_rank0(f"profile: steps {window.start} to {window[-1]} will be recorded, into {folder}")
        elif not (self._run / self._name(0, "json.gz")).is_file():
            begins = f"this start begins with step {self._steps_done + 1}"
            log.warning_rank0(f"trainer.profile_steps: {begins}, behind step {window.start}; nothing is recorded")

    def before_read(self, steps_done: int) -> None:
        """Begin to record where the window begins."""
        self._step = steps_done + 1
        if self._step == self._window.start:
            self._recording = Recording(self._ranks.device)
        if self._recording is not None:
            self._recording.begin_step(self._step)

    def after_step(self, taken: bool) -> dict[str, int | Tensor]:
        """End the recording behind the window's last step."""
        if self._recording is None:
            return {}
        self._recording.end_step()
        if self._step == self._window[-1]:
            self._recording.finish()
            self._recording, self._done = None, self._recording
        return {}

    def metrics(self, seconds: float) -> dict[str, float]:
        """Write what has been recorded since the last log point; collective."""
        if self._done is None:
            return {}
        done, self._done = self._done, None
        problem, names = done.problem, list[str]()
        try:
            names = self._write(done)
        except (OSError, RuntimeError) as error:  # no reason to stop training
            problem = str(error)
        every = self._ranks.gather((problem and f"rank {self._ranks.rank}: {problem}", names))
        if self._publish is not None:
            self._tell([problem for problem, _ in every if problem], any(names for _, names in every))
            for name in (name for _, names in every[:_PUBLISHED_RANKS] for name in names):
                self._publish(name)
        return {}

    def _name(self, rank: int, kind: str) -> str:
        window = self._window
        return f"{FOLDER}/rank-{rank}.steps-{window.start}-{window.stop}.{kind}"

    def _write(self, done: Recording) -> list[str]:
        """Write this rank's files; return their names in the run folder."""
        (self._run / FOLDER).mkdir(parents=True, exist_ok=True)
        contents = {"json.gz": done.trace(), "memory.pickle": done.memory}
        names = {self._name(self._ranks.rank, kind): data for kind, data in contents.items() if data is not None}
        for name, data in names.items():
            write_atomically(self._run / name, data)
        return list(names)

    def _tell(self, problems: list[str], any_written: bool) -> None:
        """Say where the files are and how to open them."""
        window = self._window
        if problems:
            count = f"{len(problems)} of {self._ranks.world_size} ranks"
            log.warning(f"profile: {count} could not write all of it ({problems[0]})")
        if not any_written:
            return
        trace = self._run / self._name(0, "json.gz")
        memory = ", memory.pickle in pytorch.org/memory_viz" if self._ranks.device.type == "cuda" else ""
        log.info(
            f"profile: steps {window.start} to {window[-1]} are in {trace}, and likewise of every rank; "
            f"open it in ui.perfetto.dev or chrome://tracing{memory}"
        )

    def end(self, steps_done: int, stop: int, failed: bool) -> None:
        """Drop a recording that has not come to its end."""
        if self._recording is None:
            return
        with contextlib.suppress(RuntimeError):  # a GPU that has failed fails here again
            self._recording.stop()
        self._recording = None
        if not failed:
            window = f"{self._window.start}:{self._window.stop}"
            log.warning_rank0(f"trainer.profile_steps: stopped within {window}; nothing is written")


class Recording:
    """What a process does from now on, until `finish` or `stop`.

    Attributes:
        memory: of CUDA a pickled snapshot, with the events that led to it; None before `finish`, and elsewhere.
        problem: why there is none; "" without one.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._mark: record_function | None = None
        self.memory: bytes | None = None
        self.problem = ""
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])]
        self._profiler = profile(activities=activities, record_shapes=True, profile_memory=True)
        if self._on_gpu:
            torch.cuda.memory._record_memory_history(max_entries=_MEMORY_EVENTS, stacks="python")
        self._profiler.start()

    def begin_step(self, step: int) -> None:
        """Mark the begin of a step in the trace."""
        self._mark = record_function(f"step {step}")
        self._mark.__enter__()

    def end_step(self) -> None:
        """Mark its end."""
        mark, self._mark = self._mark, None
        if mark is not None:
            mark.__exit__(None, None, None)

    def finish(self) -> None:
        """Take the snapshot of a GPU's memory, and stop."""
        if self._on_gpu:
            try:
                self.memory = _in_temporary_file(torch.cuda.memory._dump_snapshot)
            except OSError as error:  # a full disk
                self.problem = str(error)
        self.stop()

    def stop(self) -> None:
        """Record no more."""
        self.end_step()
        try:
            self._profiler.stop()
        finally:
            if self._on_gpu:
                torch.cuda.memory._record_memory_history(enabled=None)

    def trace(self) -> bytes:
        """Return the trace: Chrome's JSON, gzipped.

        Raises:
            OSError: the folder for temporary files is full, or cannot be written.
        """
        return gzip.compress(_in_temporary_file(self._profiler.export_chrome_trace), compresslevel=5)


def _in_temporary_file(write: Callable[[str], object]) -> bytes:
    """Return what `write` puts into a file whose path it is given."""
    with tempfile.TemporaryDirectory(prefix="trelm-profile-") as folder:
        path = Path(folder) / "written"
        write(str(path))
        return path.read_bytes()
