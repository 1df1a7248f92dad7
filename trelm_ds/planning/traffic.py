"""How many bytes a step hands to collectives: a closed form, per rank, without control messages.

`tools/bench/communication.py` holds it to what real steps hand over, to the byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from trelm_ds.model import WORD_EMBEDDING, EncoderConfig
from trelm_ds.planning.parameters import Parameter, Parameters
from trelm_ds.planning.zero import Zero, share_of


class MicroBatch(NamedTuple):
    """What the traffic of a micro-batch depends on."""

    tokens: int
    """T"""
    targets: int
    """M, tokens that are predicted"""


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


def of_data_group(parameters: Parameters, ranks: int, zero: Zero, number: int, micro_batches: int) -> dict[str, int]:
    """Count the bytes that a rank exchanges with those that hold the same part of the model, by kind.

    Without ZeRO gradients are all-reduced. ZeRO 1 and 2 do so too, of which each rank keeps its part
    (use_multi_rank_bucket_allreduce, DeepSpeed's default, also with reduce_scatter), 2 after every micro-batch; then
    weights are gathered, aligned by 2 a rank. ZeRO 3 gathers and reduce-scatters in every micro-batch, and gathers
    persistent parameters after the step.

    Args:
        parameters: those of a rank.
        number: bytes of one in weights and gradients.
        micro_batches: how many the step has.
    """
    of_gradient = 4 if zero.fp32_exchange else number
    if zero.stage < 3:
        reduced = parameters.trained * (micro_batches if zero.stage == 2 else 1)
        found = {"all-reduce": of_gradient * reduced}
        if zero.stage:
            found["all-gather"] = number * sum(share_of(group, 1, ranks) * ranks for group in parameters.groups)
        return found
    gathered = sum(_gathered(one, ranks, zero, micro_batches) for one in parameters.parameters)
    scattered = sum(_padded(one.elements, ranks) for one in parameters.parameters if one.group is not None)
    return {"all-gather": number * gathered, "reduce-scatter": of_gradient * scattered * micro_batches}


def _gathered(parameter: Parameter, ranks: int, zero: Zero, micro_batches: int) -> int:
    """Count the elements of a parameter that ZeRO 3 gathers in a step."""
    whole = _padded(parameter.elements, ranks)
    if parameter.elements <= zero.persistent:
        return whole
    uses = 4 if parameter.name == WORD_EMBEDDING else 2  # look-up and decoder, forward and backward
    return whole * micro_batches * (1 if zero.keeps else uses)


def _padded(elements: int, ranks: int) -> int:
    return -(-elements // ranks) * ranks


def on_the_wire(size: float, kind: str, ranks: int) -> float:
    """Return how many of a collective's bytes one rank sends in a ring of n ranks, on average over them.

    An all-reduce is a reduce-scatter and an all-gather; each of the others sends (n - 1) / n of its bytes.
    """
    return size * (ranks - 1) / ranks * (2 if kind == "all-reduce" else 1)
