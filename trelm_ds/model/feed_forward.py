"""The feed-forward layer as a key-value memory (paper 3.3)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trelm_ds.model.encoder_config import EncoderConfig


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function behind Hugging Face's `hidden_act`; `EncoderConfig` has checked the name."""
    if name == "relu":
        return F.relu
    return F.gelu if name == "gelu" else partial(F.gelu, approximate="tanh")


class KeyValueFeedForward(nn.Module):
    """y = act(x keys^T + key_bias) values + value_bias.

    Neuron j is row j of `keys` [F, D], entry j of `key_bias` [F] and row j of `values` [F, D]: one neuron is one row
    everywhere. `values` is the transpose of Hugging Face's `output.dense.weight`; `value_bias` is [D].
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        neurons, size = config.intermediate_size, config.hidden_size
        self.keys = nn.Parameter(torch.empty(neurons, size))
        self.key_bias = nn.Parameter(torch.zeros(neurons))
        self.values = nn.Parameter(torch.empty(neurons, size))
        self.value_bias = nn.Parameter(torch.zeros(size))
        self.activation = activation(config.hidden_act)
        for weight in (self.keys, self.values):
            nn.init.normal_(weight, std=config.initializer_range)

    def forward(self, hidden: Tensor) -> Tensor:
        """[T, D] -> [T, D], before dropout and residual."""
        activated = self.activation(F.linear(hidden, self.keys, self.key_bias))
        return torch.addmm(self.value_bias, activated, self.values)
