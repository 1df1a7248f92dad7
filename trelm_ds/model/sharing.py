"""The door to tensor parallelism, which imports megatron-core only once a model is shared."""

from __future__ import annotations

import torch.distributed as dist

from trelm_ds.model.masked_lm import MaskedLanguageModel
from trelm_ds.model.partition import check_degree


def make_tensor_parallel(
    model: MaskedLanguageModel, group: dist.ProcessGroup, sequence_parallel: bool = False
) -> MaskedLanguageModel:
    """Cut a whole model, which may be on device meta, to this rank's part of it, in place.

    Args:
        model: its state, if any, is the same on all ranks.
        group: megatron-core's group of the t ranks that share it.
        sequence_parallel: between the layers, each of them has only a t-th of the tokens too.

    Raises:
        UserError: they cannot share its heads and neurons evenly.
    """
    from trelm_ds.model.tensor_parallel import cut_model

    check_degree(model.config, group.size())
    cut_model(model, group, sequence_parallel)
    model.tensor_group = group
    return model
