"""How ZeRO shares out weights, gradients and optimizer states: what a rank holds, in closed form.

Found by measuring DeepSpeed 0.19 (`tools/bench/planned_memory.py` measures it again). DeepSpeed's own estimators count
18 bytes a parameter and no activations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from trelm_kernels.adamw import MAX_STEPS

from trelm_ds.planning.parameters import Parameter, Parameters
from trelm_ds.planning.trace import HeldAt

MASTER, MOMENTS, UPDATES = 4, 8, 2  # bytes of an element in fp32 weights, AdamW's moments, lazy AdamW's counts
CORRECTIONS = 2 * MASTER * (MAX_STEPS + 1)  # lazy AdamW's table


class Zero(NamedTuple):
    """ZeRO's settings, as DeepSpeed's file has them or by its defaults."""

    stage: int
    offload: bool = False
    """optimizer states and its step are the CPU's"""
    reduce_bucket: int = 500_000_000
    """elements of what is reduced at a time"""
    overlap: bool = False
    """reductions run beside the backward pass, from two buckets in turn"""
    contiguous: bool = True
    persistent: int = 100_000
    """stage 3: parameters of at most so many elements stay whole"""
    live: int = 1_000_000_000
    """stage 3: elements that are whole at a time, at most"""
    reuse: int = 1_000_000_000
    """stage 3: a parameter stays whole if it is needed again within so many elements"""
    prefetch: int = 50_000_000
    """stage 3: elements that are gathered ahead"""
    fp32_sums: bool = False
    """gradients of micro-batches are summed in fp32 (data_types.grad_accum_dtype)"""
    fp32_exchange: bool = False
    """those of ranks too (communication_data_type)"""

    @property
    def whole_sums(self) -> bool:
        """Whether every rank has sums of the whole model's gradients in fp32: DeepSpeed's BF16_Optimizer."""
        return self.stage == 1 and self.fp32_sums

    @property
    def keeps(self) -> bool:
        """Whether stage 3 keeps what it has gathered for the forward pass until the backward pass is done."""
        return self.reuse > 0

    @classmethod
    def of(cls, ds_config: dict[str, Any]) -> Zero:
        """Read a DeepSpeed configuration whose "auto" values are filled."""
        given = ds_config.get("zero_optimization", {})
        stage = int(given.get("stage", 0))
        names = {
            "reduce_bucket": "reduce_bucket_size",
            "contiguous": "contiguous_gradients",
            "persistent": "stage3_param_persistence_threshold",
            "live": "stage3_max_live_parameters",
            "reuse": "stage3_max_reuse_distance",
            "prefetch": "stage3_prefetch_bucket_size",
        }
        chosen = {name: given[key] for name, key in names.items() if key in given}
        offload = (given.get("offload_optimizer") or {}).get("device", "none") == "cpu"
        overlap = given.get("overlap_comm")
        return cls(
            stage,
            offload,
            overlap=stage == 3 if overlap is None else bool(overlap),
            fp32_sums=(ds_config.get("data_types") or {}).get("grad_accum_dtype") == "fp32",
            fp32_exchange=ds_config.get("communication_data_type") == "fp32",
            **chosen,
        )


class Held(NamedTuple):
    """Bytes that a rank holds of the model for good, and while gradients come in."""

    weights: int
    optimizer: int
    """fp32 weights, moments and counts"""
    gradients: int
    """when the passes are done"""
    accumulated: int
    """of gradients, before the last of several micro-batches; with a single one: before it"""
    buckets: int
    """while gradients come in; under stage 3 always"""
    gathered: int
    """stage 3: weights of other ranks, made whole for the passes, at most"""
    ahead: int
    """stage 3: the buffer in which weights arrive, until the last of those that were asked for together is used"""
    host: int
    """of the above on the CPU"""


def held(parameters: Parameters, zero: Zero, ranks: int, number: int, accumulates: bool) -> Held:
    """Compute what a rank holds.

    Args:
        ranks: data-parallel ones.
        number: bytes of an element in weights and gradients.
        accumulates: whether a step has more than one micro-batch.
    """
    groups = parameters.groups
    shares = [share_of(group, zero.stage, ranks) for group in groups]
    own = sum(shares)
    lazy = sum(share for share, group in zip(shares, groups, strict=True) if group[0].lazy)
    master = 0 if zero.stage == 0 and number == MASTER else MASTER  # fp32 weights are their own masters
    of_sum = MASTER if zero.fp32_sums else number
    optimizer, host = (master + MOMENTS) * own + UPDATES * lazy + (CORRECTIONS if lazy else 0), 0
    cut = zero.stage in (1, 2) and zero.contiguous
    gradients = of_sum * (max_whole(groups, shares, ranks) if cut else own)
    if zero.offload:
        # With weights in both precisions, and gradients in fp32, from which the CPU updates, of one pass and summed.
        host = optimizer + (number + (2 if accumulates else 1) * MASTER) * own
        optimizer, gradients = 0, 0
    common = {"optimizer": optimizer, "gradients": gradients, "host": host}
    buffers = number * parameters.buffers
    if zero.stage == 3:
        return _held_by_stage_3(parameters, zero, ranks, number, common, buffers)
    whole = sum(share_of(group, 1, ranks) * ranks for group in groups) if zero.stage else parameters.trained
    accumulated = gradients if zero.stage == 2 else of_sum * parameters.trained
    bucket = number * zero.reduce_bucket * (2 if zero.overlap else 1) if zero.stage and zero.contiguous else 0
    if zero.offload:  # a gradient on its way
        bucket += number * max(one.elements for one in parameters.parameters)
    if zero.whole_sums:  # there from the start, without buckets
        accumulates, bucket, common["gradients"] = True, 0, accumulated
    return Held(
        weights=number * (whole + parameters.frozen) + buffers,
        accumulated=accumulated if accumulates else 0,
        buckets=bucket,
        gathered=0,
        ahead=0,
        **common,
    )


def _held_by_stage_3(
    parameters: Parameters, zero: Zero, ranks: int, number: int, common: dict[str, int], buffers: int
) -> Held:
    sizes = [one.elements for one in parameters.parameters]
    persistent = sum(size for size in sizes if size <= zero.persistent)
    others = sum(sizes) - persistent
    # Every module that runs asks for weights to come, so that soon all are there that may be.
    whole = others if zero.keeps or zero.prefetch else max(sizes)
    if ranks == 1:  # nothing to gather, and nothing to keep whole beside its part
        persistent = whole = 0
    return Held(
        weights=number * (sum(-(-size // ranks) for size in sizes) + persistent) + buffers,
        accumulated=common["gradients"],
        buckets=number * zero.reduce_bucket,
        gathered=number * min(whole, zero.live),
        ahead=number * min(whole, zero.prefetch),
        **common,
    )


def share_of(group: list[Parameter], stage: int, ranks: int) -> int:
    """Return how many of a group's elements a rank has states of, with padding."""
    if stage == 3:
        return sum(-(-one.elements // ranks) for one in group)
    whole = sum(one.elements for one in group)
    return whole if stage == 0 else -(-whole // (2 * ranks)) * 2


def max_whole(groups: list[list[Parameter]], shares: list[int], ranks: int) -> int:
    """Return the elements of all parameters that a rank has any part of, of the rank that has most.

    ZeRO 1 and 2 keep the reduced gradients of these parameters whole (`grads_in_partition`).
    """
    total = np.zeros(ranks, dtype=np.int64)
    for group, share in zip(groups, shares, strict=True):
        sizes = np.array([one.elements for one in group])
        ends = sizes.cumsum()
        begin = share * np.arange(ranks)[:, None]
        total += ((ends - sizes < begin + share) & (ends > begin)) @ sizes
    return int(total.max())


def held_beside(zero: Zero, of_rank: Held, accumulates: bool) -> HeldAt:
    """Return what is held beside a micro-batch's passes: its gradients, and under stage 3 what is gathered.

    A function of the bytes of gradients that are finished, int64 [E], and whether some weights are unread, bool [E].
    """

    def of(finished: np.ndarray, unread: np.ndarray) -> np.ndarray:
        if zero.stage == 3:  # gradients of a bucket are put together once more to be reduced
            coming = unread if zero.keeps else True
            gathered = of_rank.gathered + np.where(coming, of_rank.ahead, 0)
            return of_rank.buckets + gathered + np.minimum(finished, of_rank.buckets)
        begun = np.where(finished > 0, of_rank.buckets, 0)
        if zero.stage == 2:  # where reduced gradients go, from the first bucket that is full
            begun = begun + np.where(finished * (2 if zero.overlap else 1) > of_rank.buckets, of_rank.gradients, 0)
        # They go into a bucket as they come, or are added to those that are there.
        moved_on = zero.stage == 2 or (zero.stage == 1 and zero.overlap) or accumulates
        return begun if moved_on else finished + begun

    return of
