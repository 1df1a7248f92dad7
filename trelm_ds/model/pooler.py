"""BERT's pooler: what classifiers read of a document."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trelm_ds.model.encoder import initialize
from trelm_ds.model.encoder_config import EncoderConfig


class Pooler(nn.Module):
    """tanh(W h + b) of a document's first state (Devlin et al., 2019). Masked language modelling does not train it."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        initialize(self, config)

    def forward(self, first: Tensor) -> Tensor:
        """Transform the states of first tokens [B, D] -> [B, D]."""
        return torch.tanh(self.dense(first))
