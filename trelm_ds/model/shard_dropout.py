"""Dropout inside a part of the model that tensor parallelism has cut: each rank drops its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_ODD = 0x9E3779B97F4A7C15 >> 1  # spreads neighbouring numbers over all bits


@contextmanager
def of_shard(shard: int | None, device: torch.device) -> Iterator[None]:
    """Draw random numbers of a shard's own; afterwards all ranks of the group go on with equal ones.

    Does nothing where there are no shards (None). Nothing waits for the device.
    """
    if shard is None or device.type not in ("cpu", "cuda"):
        yield
    elif device.type == "cpu":
        seed = int(torch.randint(1 << 62, ()))
        state = torch.get_rng_state()
        torch.default_generator.manual_seed((seed + shard * _ODD) % (1 << 63))
        yield
        torch.set_rng_state(state)
    else:
        # A generator's state is its seed and how far it has come, which advances equally on all ranks.
        before = torch.cuda.get_rng_state(device).view(torch.int64)
        apart = before.clone()
        apart[0] ^= (shard + 1) * _ODD % (1 << 63)
        torch.cuda.set_rng_state(apart.view(torch.uint8), device)
        yield
        after = torch.cuda.get_rng_state(device).view(torch.int64).clone()
        after[0] = before[0]
        torch.cuda.set_rng_state(after.view(torch.uint8), device)
