"""Join and use the process group: one process, or the ranks that torchrun started."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from trelm_ds import log
from trelm_ds.compile_caches import use_local_caches
from trelm_ds.errors import MAY_PASS, CommonError, RankError, UserError
from trelm_ds.files import waiting_lock
from trelm_ds.launched import complete_environment

T = TypeVar("T")


@dataclass(frozen=True)
class TensorGroup:
    """The t ranks that hold one model in parts (`model.tensor_parallel`), all with the same data.

    Attributes:
        rank, degree: this process among the t.
        group: megatron-core's group for their tensors, NCCL with GPUs.
    """

    rank: int
    degree: int
    group: dist.ProcessGroup


@dataclass(frozen=True)
class Ranks:
    """This process's place among the ranks, and small collectives on CPU values.

    Attributes:
        rank, world_size, local_rank: as assigned by torchrun.
        device: device of the model.
        control: gloo group for small messages, so that they never queue behind work on the GPU.
        alike: where these are not all ranks: the sets into which all fall, this being one of them.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    control: dist.ProcessGroup
    alike: tuple[tuple[int, ...], ...] | None = None

    @property
    def data(self) -> Ranks:
        """The ranks that hold the same part of the model as this one, each with other data: here all."""
        return self

    @property
    def tensor(self) -> TensorGroup | None:
        """The ranks that hold one model in parts, with the same data; None where each holds all of it."""
        return None

    @property
    def first_of_model(self) -> bool:
        """Whether this rank stands for those that hold one model in parts, where something is counted or written."""
        return self.tensor is None or self.tensor.rank == 0

    def new_group(self, backend: str) -> dist.ProcessGroup:
        """Create another process group of these ranks; collective over all ranks, whatever set they are in."""
        if self.alike is None:
            return dist.new_group(backend=backend)
        group: dist.ProcessGroup = dist.new_subgroups_by_enumeration([*map(list, self.alike)], backend=backend)[0]
        return group

    def barrier(self) -> None:
        """Wait until every rank has reached this point."""
        dist.barrier(group=self.control)

    def sum(self, *values: float) -> list[float]:
        """Sum each value over all ranks, in float64."""
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.control)
        return tensor.tolist()

    def max(self, value: int) -> int:
        """Return the maximum of an integer over all ranks."""
        tensor = torch.tensor(value, dtype=torch.int64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.control)
        return int(tensor)

    def gather(self, value: T) -> list[T]:
        """Collect a picklable value from every rank, indexed by rank."""
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return cast(list[T], values)

    def all_agree(self, call: Callable[[], T]) -> T:
        """Run `call` on every rank and return its value; if it fails on any rank, fail on all of them.

        Without this, a rank that raises alone would leave the others waiting in their next collective.

        Raises:
            CommonError: some rank's `call` raised a `UserError`, or an `OSError` that names a file; the first such
                rank's message, on every rank.
        """
        value, problem = None, None
        try:
            value = call()
        except UserError as error:
            problem = str(error), error.passes
        except OSError as error:
            if error.filename is None:
                raise
            problem = f"{os.fsdecode(error.filename)}: {error.strerror}", error.errno in MAY_PASS
        if problem and self.rank:
            problem = f"rank {self.rank} on {socket.gethostname()}: {problem[0]}", problem[1]
        if first := next(filter(None, self.gather(problem)), None):
            common = CommonError(first[0])
            common.passes = first[1]
            raise common
        return cast(T, value)

    def from_first(self, value: Any) -> Any:
        """Broadcast rank 0's value to every rank."""
        box = [value]
        dist.broadcast_object_list(box, group_src=0, group=self.control)
        return box[0]

    def report(self, error: CommonError) -> None:
        """Log the error on rank 0 before any rank goes on to its end; collective.

        A launcher ends the other ranks as soon as one has failed, so a rank 0 that is late would say nothing.
        """
        if self.rank == 0:
            log.error(str(error))
        error.reported = True
        with contextlib.suppress(RuntimeError):  # a rank is gone all the same
            self.barrier()


class OneProcess(Ranks):
    """A process by itself, without a process group: it starts at once and needs no DeepSpeed."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(0, 1, 0, device, control=cast(dist.ProcessGroup, None))

    def barrier(self) -> None:
        pass

    def sum(self, *values: float) -> list[float]:
        return list(values)

    def max(self, value: int) -> int:
        return value

    def gather(self, value: T) -> list[T]:
        return [value]

    def from_first(self, value: Any) -> Any:
        return value


def join_parts(part: torch.Tensor, group: dist.ProcessGroup, dimension: int) -> torch.Tensor:
    """Put the parts that the ranks of a group have, equal in shape, together; the same on all of them; collective."""
    parts = [torch.empty_like(part) for _ in range(group.size())]
    dist.all_gather(parts, part.contiguous(), group=group)
    return torch.cat(parts, dimension)


def import_deepspeed() -> ModuleType:
    """Import DeepSpeed with its logging turned down and its C++ op cached in this environment."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise it warns about guessing the accelerator on import
    # DeepSpeed builds its CPU communication op with the first ninja on PATH, and rebuilds it (40 s) whenever that
    # ninja's version differs from last time. Put this environment's own ninja first, whether or not the environment is
    # activated, and keep the build inside the environment rather than in a cache shared with other environments.
    if os.access(sys.prefix, os.W_OK):
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", f"{sys.prefix}/torch_extensions")
    own = str(Path(sys.executable).parent)
    if own not in (path := os.environ.get("PATH", "")).split(os.pathsep)[:1]:
        os.environ["PATH"] = f"{own}{os.pathsep}{path}"
    with _without_mlflow():  # DeepSpeed's autotuner imports it, a second for every rank
        import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


@contextlib.contextmanager
def _without_mlflow() -> Iterator[None]:
    if "mlflow" in sys.modules:
        yield
        return
    sys.modules["mlflow"] = None  # type: ignore[assignment]  # an import then fails at once
    try:
        yield
    finally:
        del sys.modules["mlflow"]


def connect() -> Ranks:
    """Join the process group through DeepSpeed: NCCL with GPUs, gloo without.

    Raises:
        UserError: the environment names a rank incompletely, or a GPU that is not there.
    """
    complete_environment()
    log.setup(distributed=True)
    use_local_caches()  # before DeepSpeed, which looks at Triton's when it is imported
    deepspeed = import_deepspeed()
    local_rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        if local_rank >= (found := torch.cuda.device_count()):
            raise RankError(f"LOCAL_RANK: is {local_rank}, but this node has {found} GPUs; start one rank for each")
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    else:
        device = torch.device("cpu")
    with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed prints that it loads its C++ op
        build_cpu_op()
        deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", verbose=False)
    control = dist.new_group(backend="gloo")
    return Ranks(dist.get_rank(), dist.get_world_size(), local_rank, device, control)


def disconnect() -> None:
    """Leave the process group; a process that exits without doing so gets a warning from torch."""
    if dist.is_initialized():
        dist.destroy_process_group()


def build_cpu_op() -> None:
    """Build and load DeepSpeed's CPU communication op unless there are GPUs; takes about 45 s the first time.

    DeepSpeed would build it on demand, but torch guards that build with a lock file that a killed process leaves
    behind, and every later start would then wait forever without a message. So build it here, under a lock that the
    kernel releases with its process, and remove torch's stale lock file first.
    """
    import_deepspeed()
    from deepspeed.accelerator import get_accelerator
    from torch.utils.cpp_extension import _get_build_directory

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if get_accelerator().device_name() != "cpu" or builder is None or not builder.is_compatible():
        return
    folder = Path(_get_build_directory(builder.name, verbose=False))
    with waiting_lock(folder.parent / f".{builder.name}.lock"):
        with contextlib.suppress(OSError):
            (folder / "lock").unlink(missing_ok=True)
        builder.load(verbose=False)
