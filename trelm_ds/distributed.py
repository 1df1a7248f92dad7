"""The process group: one process, or the ranks that torchrun started."""

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
from unittest import mock

import torch
import torch.distributed as dist

from trelm_ds.errors import CommonError, UserError
from trelm_ds.files import turn

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among the others.

    Attributes:
        rank, world_size, local_rank: as torchrun numbers them.
        device: where the model lives.
        control: a gloo group for small messages, so that they never wait for the GPU.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    control: dist.ProcessGroup

    def barrier(self) -> None:
        dist.barrier(group=self.control)

    def sum(self, *values: float) -> list[float]:
        """The sums of values over all ranks."""
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.control)
        return tensor.tolist()

    def max(self, value: int) -> int:
        """The largest of an integer over all ranks."""
        tensor = torch.tensor(value, dtype=torch.int64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.control)
        return int(tensor)

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank."""
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return cast(list[T], values)

    def all_agree(self, call: Callable[[], T]) -> T:
        """Calls `call` on every rank; a `UserError` on any rank is raised on all, so that none is left waiting."""
        value, problem = None, None
        try:
            value = call()
        except UserError as error:
            problem = str(error) if self.rank == 0 else f"rank {self.rank} on {socket.gethostname()}: {error}"
        if first := next(filter(None, self.gather(problem)), None):
            raise CommonError(first)
        return cast(T, value)

    def from_first(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]


def import_deepspeed() -> ModuleType:
    """DeepSpeed, without its chatter, set up so that its C++ op is built once."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise it warns about its guess on import
    # It builds its CPU communication op with the first ninja on PATH, and builds it all again (40 s) when that is
    # another version than last time. So always take the environment's own, activated or not.
    # For the same reason it is kept in the environment, not in a cache that environments share.
    if os.access(sys.prefix, os.W_OK):
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", f"{sys.prefix}/torch_extensions")
    own = str(Path(sys.executable).parent)
    if own not in (path := os.environ.get("PATH", "")).split(os.pathsep)[:1]:
        os.environ["PATH"] = f"{own}{os.pathsep}{path}"
    with _without_what_trelm_does_not_use():
        import deepspeed
        import deepspeed.runtime.zero.muon.muon_optimizer

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


@contextlib.contextmanager
def _without_what_trelm_does_not_use() -> Iterator[None]:
    """Saves every rank's start four seconds of imports: MLflow for DeepSpeed's autotuner, torch's compiler for Muon."""
    hidden = "mlflow" not in sys.modules
    if hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        with mock.patch("torch.compile", lambda function: function):
            yield
    finally:
        if hidden:
            del sys.modules["mlflow"]


def connect() -> Ranks:
    """Joins the process group through DeepSpeed: NCCL with GPUs, gloo without."""
    deepspeed = import_deepspeed()
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    else:
        device = torch.device("cpu")
    with contextlib.redirect_stdout(io.StringIO()):  # it announces its C++ op
        build_cpu_op()
        deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", verbose=False)
    control = dist.new_group(backend="gloo")
    return Ranks(dist.get_rank(), dist.get_world_size(), local_rank, device, control)


def disconnect() -> None:
    """Leaves the process group, so that the process ends without complaint."""
    if dist.is_initialized():
        dist.destroy_process_group()


def build_cpu_op() -> None:
    """Builds and loads DeepSpeed's CPU communication op, unless there are GPUs: about 45 s the first time.

    DeepSpeed does it by itself, but under a lock of torch's that a killed process leaves behind, and for which every
    later start would wait without a word. So it is done here under one that goes with its process.
    """
    import_deepspeed()
    from deepspeed.accelerator import get_accelerator
    from torch.utils.cpp_extension import _get_build_directory

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if get_accelerator().device_name() != "cpu" or builder is None or not builder.is_compatible():
        return
    folder = Path(_get_build_directory(builder.name, verbose=False))
    with turn(folder.parent / f".{builder.name}.lock"):
        with contextlib.suppress(OSError):
            (folder / "lock").unlink(missing_ok=True)
        builder.load(verbose=False)
