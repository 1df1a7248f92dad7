"""FLOPs of training, counted from the matrix products of encoder and MLM head; what GPUs can do in a second."""

from __future__ import annotations

from typing import NamedTuple

from trelm_ds.model.batch import Batch
from trelm_ds.model.encoder_config import EncoderConfig

# Dense bf16 matrix products with fp32 sums, TFLOP/s, as the vendor states them, by words of the GPU's name.
PEAKS = {
    "A10": 125.0,
    "A30": 165.0,
    "A40": 149.7,
    "A100": 312.0,
    "L4": 121.0,
    "L40S": 362.0,
    "H100": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H200": 989.0,
    "H200 NVL": 835.0,
    "GH200": 989.0,
    "B200": 2250.0,
}


class Work(NamedTuple):
    """What passes through the model: T tokens in documents, none of them padding.

    Attributes:
        tokens: T.
        pairs: sum of the documents' squared lengths, since a token attends to its own document.
        scored: M, tokens for which the MLM head scores the vocabulary.
    """

    tokens: float
    pairs: float
    scored: float

    @classmethod
    def of(cls, batch: Batch) -> Work:
        """Count a batch's documents, queries and the like among them; `batch` is on the CPU, where nothing waits."""
        lengths = batch.cu_seqlens.diff().long()
        return cls(len(batch.input_ids), int(lengths.square().sum()), len(batch.mlm_positions))


class Updated(NamedTuple):
    """What of the model gets gradients; by default all of it.

    Attributes:
        neurons: share of the feed-forward neurons of a layer.
        first_layer: the lowest layer whose neurons get any.
        others: whether attention, norms, embeddings and MLM head get any.
        reaches_input: whether gradients go back to the input all the same, as where a map of injected vectors learns.
    """

    neurons: float = 1.0
    first_layer: int = 0
    others: bool = True
    reaches_input: bool = False


ALL_UPDATED = Updated()


def training_flops(sizes: EncoderConfig, work: Work, updated: Updated = ALL_UPDATED) -> float:
    """Count the FLOPs of a forward and a backward pass of encoder and MLM head.

    What a backward pass computes again (activation checkpointing, flash attention) is not counted, nor what attribution
    and the heads of other objectives take.
    """
    size, layers = sizes.hidden_size, sizes.num_hidden_layers
    memory = 4 * work.tokens * size * sizes.intermediate_size
    projections, scores = 8 * work.tokens * size * size, 4 * work.pairs * size
    head = work.scored * (2 * size * size + 2 * size * sizes.vocab_size)
    forward = layers * (memory + projections + scores) + head
    learning = layers - updated.first_layer
    passed = layers if updated.others or updated.reaches_input else learning - 1  # by the gradient, from end to end
    by_inputs = passed * (memory + projections + 2 * scores) + head  # scores have two inputs and no weights
    if passed < layers:
        by_inputs += memory / 2  # in the lowest layer that learns it stops at the neurons
    by_weights = learning * updated.neurons * memory + updated.others * (layers * projections + head)
    return forward + by_inputs + by_weights


def flops_per_token(sizes: EncoderConfig, attended: float, scored: float, updated: Updated = ALL_UPDATED) -> float:
    """Count `training_flops` of a token on average.

    Args:
        attended: number of tokens that it attends to: the sum of the documents' squared lengths over that of their
            lengths.
        scored: share of the tokens that the MLM head scores: the mask rate.
    """
    return training_flops(sizes, Work(1.0, attended, scored), updated)


def peak_tflops(name: str) -> float | None:
    """Look up what a GPU can do by its name; None where that is not known, as of a part of a GPU (MIG)."""
    words = set(name.replace("-", " ").split())
    known = [entry for entry in PEAKS if words.issuperset(entry.split())]
    return None if "MIG" in words or not known else PEAKS[max(known, key=len)]
