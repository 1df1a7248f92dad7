"""What a rank holds at its worst moment."""

from __future__ import annotations

from typing import NamedTuple

from trelm_ds.planning.parameters import Parameters
from trelm_ds.planning.trace import Between, Trace
from trelm_ds.planning.zero import MASTER, Held, Zero, held, held_beside, share_of

_IN_WORDS = {"optimizer": "optimizer states", "tables": "vectors and memories", "temporary": "temporary tensors"}


class Memory(NamedTuple):
    """Bytes of a rank's device, by what they are for, when most is held.

    Attributes:
        weights, optimizer, tables: for good; tables: memory bank, vectors, and neurons off a compact path.
        gradients: of earlier micro-batches, summed.
        buckets: for communication: reduced gradients, and under ZeRO 3 gathered weights.
        activations: kept for the backward pass.
        temporary: whatever else there is at the worst moment.
        reduced: gradients when the passes are done, and under ZeRO 3 the bucket that stays.
        step: peak of the optimizer's step, after the passes.
        host: on the CPU, with offloading.
    """

    weights: int
    optimizer: int
    tables: int
    gradients: int
    buckets: int
    activations: int
    temporary: int
    reduced: int
    step: int
    host: int

    @property
    def states(self) -> int:
        """Weights, optimizer states and gradients, when the passes are done."""
        return self.weights + self.optimizer + self.reduced

    @property
    def passes(self) -> int:
        """Peak of the forward and backward passes."""
        parts = self.weights, self.optimizer, self.tables, self.gradients, self.buckets, self.activations
        return sum(parts) + self.temporary

    @property
    def peak(self) -> int:
        """The most that is held at a time."""
        return max(self.passes, self.step)

    def largest(self) -> str:
        """Name what takes most, in a few words, of which there are several."""
        parts = {name: value for name, value in self._asdict().items() if name not in ("reduced", "step", "host")}
        most = max(parts, key=lambda name: parts[name])
        return _IN_WORDS.get(most, most)


def memory_of(
    parameters: Parameters,
    zero: Zero,
    ranks: int,
    number: int,
    trace: Trace | Between,
    accumulates: bool,
    tables: int = 0,
    looked_up: int = 0,
    at_once: bool = True,
) -> Memory:
    """Compute what a rank holds.

    Args:
        parameters: this rank's part of the model.
        ranks: data-parallel ones.
        number: bytes of an element in weights, gradients and activations.
        trace: of its largest micro-batch.
        accumulates: whether a step has more than one micro-batch.
        tables: bytes of this rank's shards of memory bank, vectors and neurons.
        looked_up: bytes of the rows that a step has looked up.
        at_once: AdamW updates all weights of a group in one go, as on GPUs, which takes as much again as their masters.
    """
    states = held(parameters, zero, ranks, number, accumulates)
    peak = trace.peak(held_beside(zero, states, accumulates))
    peak = max(peak, _reduced_at_the_end(parameters, zero, states, number, accumulates)) + looked_up
    buckets = min(peak, states.buckets + states.gathered + states.ahead)
    saved = min(trace.saved, peak - buckets)
    return Memory(
        weights=states.weights,
        optimizer=states.optimizer,
        tables=tables,
        gradients=states.accumulated,
        buckets=buckets,
        activations=saved,
        temporary=peak - buckets - saved,
        reduced=states.gradients + (states.buckets if zero.stage == 3 else 0),
        step=states.weights + states.optimizer + tables + _step(parameters, zero, states, ranks, at_once),
        host=states.host,
    )


def _reduced_at_the_end(parameters: Parameters, zero: Zero, states: Held, number: int, accumulates: bool) -> int:
    """Return what is held beside weights, states and earlier gradients where all are reduced after the passes."""
    own = 0 if accumulates else number * parameters.trained
    if zero.stage == 0:  # laid end to end, also by a single rank
        return own + number * parameters.trained
    if zero.stage == 1 and not zero.overlap and not zero.whole_sums:  # those of its own part once more
        return own + states.gradients + states.buckets
    return 0


def _step(parameters: Parameters, zero: Zero, states: Held, ranks: int, at_once: bool) -> int:
    """Return what the optimizer's step holds beside weights and states: gradients in fp32, and its own numbers."""
    if zero.offload:
        return 0
    if zero.whole_sums:  # flattened to be exchanged
        return 2 * states.gradients
    own = sum(share_of(group, zero.stage, ranks) for group in parameters.groups)
    largest = max((sum(one.elements for one in group) for group in parameters.groups if not group[0].lazy), default=0)
    shared = largest * own // max(1, parameters.trained)
    kept = states.gradients if zero.stage == 3 else 0  # beside those in fp32
    return kept + MASTER * own + (MASTER * shared if at_once else 0)
