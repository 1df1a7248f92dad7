"""How many bytes a step of plain masked language modelling hands to collectives: a closed form, per rank.

`communication.py` holds it to what real steps hand over, to the byte, before it computes larger models with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from compact import sizes_of
from exchanged import DATA, TENSOR, Bytes

from trelm_ds.model import EncoderConfig, MaskedLanguageModel
from trelm_ds.model.partition import WORD_EMBEDDING, padded, partition_of
from trelm_ds.planning.parameters import Parameter, Parameters
from trelm_ds.planning.traffic import MicroBatch, of_data_group, of_tensor_group, on_the_wire
from trelm_ds.planning.zero import Zero


class Layout(NamedTuple):
    """How ranks share the work."""

    tensor: int
    """ranks that share a model"""
    data: int
    """ranks that hold the same part of one"""

    @property
    def name(self) -> str:
        return f"TP {self.tensor} x DP {self.data}" if self.tensor > 1 else f"DP {self.data}"


LAYOUTS = (Layout(1, 4), Layout(2, 2))
RELEASED = Zero(3, reuse=0, prefetch=0)  # a parameter is released after the forward pass, and gathered again
ZEROS = (Zero(1), Zero(2), Zero(3), RELEASED)
BYTES = {"fp32": 4, "bf16": 2}  # of a number in weights, gradients and activations
MASKED = 0.15  # share of tokens that are predicted
TOKENS = 8192  # per GPU and step
NVLINK, INFINIBAND = 450e9, 50e9  # bytes/s that a GPU sends
LINKS = {
    "NVLink": {TENSOR: NVLINK, DATA: NVLINK},
    "NVLink in pairs, InfiniBand between": {TENSOR: NVLINK, DATA: INFINIBAND},
}


def name_of(zero: Zero) -> str:
    """Name a stage, of the third with what becomes of a parameter between the passes."""
    return f"ZeRO {zero.stage}" + ("" if zero.stage < 3 else ", kept" if zero.keeps else ", released")


def parameters_of(sizes: EncoderConfig, degree: int) -> Parameters:
    """List the parameters of a model, or of a rank's t-th part of it, in two groups: matrices and vectors."""
    with torch.device("meta"):
        model = MaskedLanguageModel(sizes)
    found = []
    for name, weight in model.named_parameters():
        elements = weight.numel()
        if name == WORD_EMBEDDING:
            elements = padded(sizes.vocab_size, degree) // degree * sizes.hidden_size
        elif partition_of(name) is not None:
            elements //= degree
        found.append(Parameter(name, elements, group=int(weight.dim() > 1)))
    return Parameters(tuple(found), 0)


def of_step(
    sizes: EncoderConfig, layout: Layout, zero: Zero, number: int, micro_batches: Sequence[MicroBatch]
) -> Bytes:
    """Count the bytes that a rank hands over in a step, without control messages.

    Args:
        micro_batches: the rank's own.
    """
    found: Bytes = {}
    if layout.data > 1:
        parameters = parameters_of(sizes, layout.tensor)
        found[DATA] = of_data_group(parameters, layout.data, zero, number, len(micro_batches))
    if layout.tensor > 1:
        found[TENSOR] = {"all-reduce": of_tensor_group(sizes, number, micro_batches)}
    return found


def sent(handed: Bytes, layout: Layout) -> dict[str, float]:
    """Convert the bytes of a step to those that a rank sends in rings, by group."""
    ranks = {DATA: layout.data, TENSOR: layout.tensor}
    return {
        group: sum(on_the_wire(size, kind, ranks[group]) for kind, size in kinds.items())
        for group, kinds in handed.items()
    }


def shape(name: str) -> EncoderConfig:
    """Return the sizes of base or xl."""
    base = sizes_of("base")
    wider = {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 8192}
    return replace(base, **wider) if name == "xl" else base


def seconds(sizes: EncoderConfig, layout: Layout, zero: Zero, tokens: int, speeds: dict[str, float]) -> float:
    """Time a step's exchange of one micro-batch: bytes that a rank sends over the speed of each group's link.

    Args:
        tokens: per GPU; ranks that share a model take theirs together.
        speeds: bytes/s by group.
    """
    batch = MicroBatch(tokens * layout.tensor, round(MASKED * tokens * layout.tensor))
    by_group = sent(of_step(sizes, layout, zero, BYTES["bf16"], [batch]), layout)
    return sum(size / speeds[group] for group, size in by_group.items())


def crossing(sizes: EncoderConfig, zero: Zero, speeds: dict[str, float]) -> int:
    """Return the tokens per GPU and step up to which TP 2 x DP 2 takes less than DP 4."""
    many = 1_000_000  # the time is linear in tokens, and that of data parallelism does not depend on them
    alone, shared = LAYOUTS
    fixed, at_many = (seconds(sizes, shared, zero, tokens, speeds) for tokens in (0, many))
    return max(0, int((seconds(sizes, alone, zero, 0, speeds) - fixed) / ((at_many - fixed) / many)))


def computed(name: str) -> dict[str, Any]:
    """Evaluate the closed form for a shape, one micro-batch a step."""
    sizes = shape(name)
    per_token = of_tensor_group(sizes, BYTES["bf16"], [MicroBatch(100, round(100 * MASKED))])
    per_token -= of_tensor_group(sizes, BYTES["bf16"], [MicroBatch(0, 0)])
    found: dict[str, Any] = {"tensor_bytes_per_token": per_token / 100, "zero": {}}
    for zero in ZEROS:
        row: dict[str, Any] = {"tokens_up_to": {link: crossing(sizes, zero, speeds) for link, speeds in LINKS.items()}}
        for layout in LAYOUTS:
            parameters = parameters_of(sizes, layout.tensor)
            handed = of_data_group(parameters, layout.data, zero, BYTES["bf16"], 1)
            row[layout.name] = {
                "parameters": parameters.trained,
                "handed": handed,
                "sent": round(sent({DATA: handed}, layout)[DATA]),
                "ms": {
                    link: round(seconds(sizes, layout, zero, TOKENS, speeds) * 1e3, 2) for link, speeds in LINKS.items()
                },
            }
        found["zero"][name_of(zero)] = row
    return found
