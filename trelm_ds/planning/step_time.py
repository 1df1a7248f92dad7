"""How long a step takes by the roofline: arithmetic, memory, links; nothing waits for anything else but gradients."""

from __future__ import annotations

from typing import NamedTuple

from trelm_ds.planning.hardware import Device
from trelm_ds.planning.parameters import Parameters
from trelm_ds.planning.traffic import on_the_wire
from trelm_ds.planning.zero import MASTER, MOMENTS, Zero, share_of

# The backward pass, beside which gradients are reduced, is two thirds of the work.
_BESIDE = 2 / 3
_HOST_BANDWIDTH = 100e9  # bytes/s of the CPU's memory, of which the ranks of a node have equal parts


class Layout(NamedTuple):
    """How ranks share the work.

    Attributes:
        tensor: ranks that share a model, all on one node.
        data: ranks that hold the same part of one.
        per_node: ranks of a node.
    """

    tensor: int
    data: int
    per_node: int

    @property
    def on_one_node(self) -> bool:
        """Whether those that hold the same part are on one node."""
        return self.tensor * self.data <= self.per_node


class StepTime(NamedTuple):
    """Seconds of a step, by what they are spent on; each is what is not hidden behind another."""

    passes: float
    """forward and backward passes of all micro-batches"""
    tensor: float
    """exchange between ranks that share a model"""
    data: float
    """exchange of gradients and weights"""
    optimizer: float

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return sum(self)


def step_time(
    parameters: Parameters,
    zero: Zero,
    layout: Layout,
    device: Device,
    number: int,
    passes: float,
    tensor_bytes: int,
    data_bytes: dict[str, int],
) -> StepTime:
    """Time a step.

    Args:
        parameters: a rank's part of the model.
        device: with the speeds that it attains.
        number: bytes of an element in weights and gradients.
        passes: seconds of all micro-batches.
        tensor_bytes: that a rank all-reduces with those that share its model.
        data_bytes: that it exchanges with those that hold the same part, by kind.
    """
    link = device.node_link
    if not layout.on_one_node:  # rings leave a node over the network cards of all its ranks that are in the group
        link = min(link, device.network * layout.per_node / layout.tensor)
    sent = {kind: on_the_wire(size, kind, layout.data) for kind, size in data_bytes.items()}
    exchange = sum(sent.values()) / link
    if zero.overlap and zero.stage:
        # Of ZeRO 2 the reduction, of ZeRO 3 all but what is not done in time.
        beside = exchange if zero.stage == 3 else sent.get("all-reduce", 0.0) / link
        exchange -= min(beside, _BESIDE * passes)
    own = sum(share_of(group, zero.stage, layout.data) for group in parameters.groups)
    return StepTime(
        passes=passes,
        tensor=on_the_wire(tensor_bytes, "all-reduce", layout.tensor) / device.node_link,
        data=exchange,
        optimizer=_optimizer(own, zero, layout, device, number),
    )


def _optimizer(own: int, zero: Zero, layout: Layout, device: Device, number: int) -> float:
    """Time AdamW on a rank's elements: everything is read and written once, gradients read, weights written."""
    moved = own * (2 * (MASTER + MOMENTS) + 2 * number)
    if not zero.offload:
        return moved / device.bandwidth
    return 2 * number * own / device.host_link + moved * layout.per_node / _HOST_BANDWIDTH
