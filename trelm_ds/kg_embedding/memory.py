"""Whether a training fits into memory, before it begins."""

from __future__ import annotations

import os

import psutil
import torch

from trelm_ds.distributed import Ranks
from trelm_ds.errors import UserError

_NUMBER = 4  # bytes of float32
_ORDER = 24  # bytes per training triple while a pass is put in order
_SPARE = 1 << 29  # scores of an evaluation, a step's rows


def table_bytes(dim: int, n_rows: int, world_size: int) -> int:
    """Return the bytes of one rank's rows: D numbers and one of the optimizer, float32, for each."""
    return -(-n_rows // world_size) * (dim + 1) * _NUMBER


def check_memory(dim: int, n_rows: int, n_triples: int, ranks: Ranks) -> None:
    """Check that the tables fit.

    Args:
        n_rows: entities and relations.
        n_triples: to train on.

    Raises:
        UserError: they do not.
    """
    tables = table_bytes(dim, n_rows, ranks.world_size)
    if ranks.device.type == "cuda":
        _check(tables + _SPARE, torch.cuda.mem_get_info(ranks.device)[0], 1, dim, n_rows, "the GPU")
        tables = 0
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world_size)) if ranks.world_size > 1 else 1
    needed = tables + n_triples * _ORDER + _SPARE
    _check(needed, psutil.virtual_memory().available, beside, dim, n_rows, "this node")


def _check(needed: int, free: int, beside: int, dim: int, n_rows: int, where: str) -> None:
    if needed * beside > free:
        on = f" by {beside} ranks" if beside > 1 else ""
        raise UserError(
            f"--dim: {dim} numbers for each of {n_rows:,} entities and relations need {needed * beside / 2**30:.1f} GiB"
            f"{on}, {where} has {free / 2**30:.1f} free; give a smaller one, or more nodes"
        )
