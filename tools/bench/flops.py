"""FLOPs of training a token, counted from the matrix products of the model."""

from __future__ import annotations

from trelm_ds.batches import mask_rate
from trelm_ds.config import Config


def training_flops(
    config: Config, sequence: float, vocabulary: int, density: float = 1.0, trainable: str = "all"
) -> float:
    """Count the FLOPs per token of a forward and a backward pass; recomputation of activations is not counted.

    Args:
        config: model sizes and mask rate.
        sequence: number of tokens that a token attends to.
        vocabulary: vocabulary size V.
        density: share of the feed-forward neurons that get weight gradients.
        trainable: "all", or "ffn_only", where the feed-forward neurons alone get any.
    """
    model = config.model
    size, neurons, layers = model.hidden_size, model.intermediate_size, model.num_hidden_layers
    memory, projections, scores = 4 * size * neurons, 8 * size * size, 4 * sequence * size
    head = mask_rate(config.masking, 0, 1) * (2 * size * size + 2 * size * vocabulary)
    flops = 3 * (layers * (memory + projections + scores) + head)  # scores have no weights but two inputs each
    flops -= (1 - density) * layers * memory
    if trainable == "ffn_only":  # backward ends in layer 0, and nothing else needs weight gradients
        flops -= layers * projections + head + (projections + 2 * scores) + memory / 2
    return flops
