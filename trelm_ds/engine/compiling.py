"""Compile the encoder's layers with torch.compile, whatever their number of tokens."""

from __future__ import annotations

from trelm_ds.distributed import import_deepspeed
from trelm_ds.model import EncoderLayer, MaskedLanguageModel

BACKEND = "inductor"
# Frozen or not, with a path or none, training or evaluation, documents padded in one group or two: each has a graph.
# Behind torch's own limit, 8, a layer runs uncompiled from then on, and nobody is told.
_MOST_GRAPHS = 64


def compile_layers(model: MaskedLanguageModel, zero_stage: int) -> None:
    """Have every encoder layer compiled at its first pass, one graph for all layers and all numbers of tokens.

    Embeddings and head, whose shapes differ from step to step in more ways, stay as they are. Call it before the
    DeepSpeed engine is built: under ZeRO 3 it has a layer gathered as a whole, since what gathers a part of it cannot
    be compiled with it.
    """
    import torch
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_GRAPHS)
    for layer in model.encoder.blocks:
        # Not layer.compile(), which would take DeepSpeed's hooks of the layer into the graph.
        layer.forward = torch.compile(layer.forward, dynamic=True, backend=BACKEND)  # type: ignore[method-assign]
    if zero_stage == 3:
        import_deepspeed()
        from deepspeed.utils import set_z3_leaf_modules

        set_z3_leaf_modules(model, [EncoderLayer])


def compiled_graphs() -> int:
    """Count the graphs that were compiled in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
