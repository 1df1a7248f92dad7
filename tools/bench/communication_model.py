"""How many bytes a step of plain masked language modelling hands to collectives: a closed form, per rank.

`communication.py` holds it to what real steps hand over, to the byte, before it computes larger models with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from compact import sizes_of
from exchanged import DATA, TENSOR, Bytes, on_the_wire

from trelm_ds.model import EncoderConfig, MaskedLanguageModel
from trelm_ds.model.partition import WORD_EMBEDDING, padded, partition_of


class Layout(NamedTuple):
    """How ranks share the work."""

    tensor: int
    """ranks that share a model"""
    data: int
    """ranks that hold the same part of one"""

    @property
    def name(self) -> str:
        return f"TP {self.tensor} x DP {self.data}" if self.tensor > 1 else f"DP {self.data}"


class Zero(NamedTuple):
    """How ZeRO shares out the training state."""

    stage: int
    """1 to 3"""
    released: bool = False
    """stage 3: whether a parameter is released after the forward pass and gathered again for the backward pass, as with
    stage3_max_reuse_distance 0; else it is kept, as where that distance covers a whole pass"""
    persistent: int = 100_000
    """stage 3: parameters of at most so many elements are whole all the time (stage3_param_persistence_threshold)"""

    @property
    def name(self) -> str:
        return f"ZeRO {self.stage}" + (", released" if self.released else ", kept" if self.stage == 3 else "")


class MicroBatch(NamedTuple):
    tokens: int
    """T"""
    targets: int
    """M, tokens that are predicted"""


class Parameter(NamedTuple):
    """A parameter, or a rank's part of one."""

    name: str
    elements: int
    matrix: bool
    """optimizers have one group of matrices and one of vectors"""


LAYOUTS = (Layout(1, 4), Layout(2, 2))
ZEROS = (Zero(1), Zero(2), Zero(3), Zero(3, released=True))
BYTES = {"fp32": 4, "bf16": 2}  # of a number in weights, gradients and activations
MASKED = 0.15  # share of tokens that are predicted
TOKENS = 8192  # per GPU and step
NVLINK, INFINIBAND = 450e9, 50e9  # bytes/s that a GPU sends
LINKS = {
    "NVLink": {TENSOR: NVLINK, DATA: NVLINK},
    "NVLink in pairs, InfiniBand between": {TENSOR: NVLINK, DATA: INFINIBAND},
}


def parameters_of(sizes: EncoderConfig, degree: int) -> list[Parameter]:
    """List the parameters of a model, or of the t-th part of it that a rank has."""
    with torch.device("meta"):
        model = MaskedLanguageModel(sizes)
    found = []
    for name, weight in model.named_parameters():
        elements = weight.numel()
        if name == WORD_EMBEDDING:
            elements = padded(sizes.vocab_size, degree) // degree * sizes.hidden_size
        elif partition_of(name) is not None:
            elements //= degree
        found.append(Parameter(name, elements, weight.dim() > 1))
    return found


def of_tensor_group(sizes: EncoderConfig, number: int, micro_batches: Sequence[MicroBatch]) -> int:
    """Count the bytes that a rank all-reduces with those that share its model; they do not depend on how many they are.

    Per token and layer: the outputs of attention and feed-forward, and the gradients by their inputs, D numbers each;
    and once the word embedding. Per target: the gradient by its state; the highest score (fp32) and its word (int64),
    the sum of exponentials and the label's score (fp32). Per micro-batch: the gradient by the words' bias.

    Args:
        number: bytes of one in activations.
    """
    width, layers = sizes.hidden_size, sizes.num_hidden_layers
    per_token, per_target = number * width * (4 * layers + 1), number * width + 4 + 8 + 4 + 4
    per_batch = number * sizes.vocab_size
    return sum(batch.tokens * per_token + batch.targets * per_target + per_batch for batch in micro_batches)


def of_data_group(
    parameters: Sequence[Parameter], ranks: int, zero: Zero, number: int, micro_batches: int
) -> dict[str, int]:
    """Count the bytes that a rank exchanges with those that hold the same part of the model, by kind.

    ZeRO 1 and 2 all-reduce gradients, of which each rank keeps its part (use_multi_rank_bucket_allreduce, DeepSpeed's
    default, also with reduce_scatter), 2 after every micro-batch; then weights are gathered, aligned by 2 a rank.
    ZeRO 3 gathers and reduce-scatters in every micro-batch, and gathers persistent parameters after the step.

    Args:
        parameters: those of a rank.
        number: bytes of one in weights and gradients.
        micro_batches: how many the step has.
    """
    if zero.stage < 3:
        reduced = sum(one.elements for one in parameters) * (micro_batches if zero.stage == 2 else 1)
        groups = [sum(one.elements for one in parameters if one.matrix == matrix) for matrix in (True, False)]
        return {"all-reduce": number * reduced, "all-gather": number * sum(padded(one, 2 * ranks) for one in groups)}
    gathered = 0
    for name, elements, _ in parameters:
        whole = padded(elements, ranks)
        uses = 4 if name == WORD_EMBEDDING else 2  # look-up and decoder, forward and backward
        gathered += whole if elements <= zero.persistent else whole * micro_batches * (uses if zero.released else 1)
    scattered = sum(padded(one.elements, ranks) for one in parameters) * micro_batches
    return {"all-gather": number * gathered, "reduce-scatter": number * scattered}


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
                "parameters": sum(one.elements for one in parameters),
                "handed": handed,
                "sent": round(sent({DATA: handed}, layout)[DATA]),
                "ms": {
                    link: round(seconds(sizes, layout, zero, TOKENS, speeds) * 1e3, 2) for link, speeds in LINKS.items()
                },
            }
        found["zero"][zero.name] = row
    return found
