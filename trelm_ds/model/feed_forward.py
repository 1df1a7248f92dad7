"""The feed-forward layer as a key-value memory, and the knowledge path through it (paper 3.3)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from trelm_kernels import activate, activation_backward, mask_columns, path_weight_gradient

from trelm_ds.model.encoder_config import EncoderConfig


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """Return the function behind Hugging Face's `hidden_act`, whose name `EncoderConfig` has checked."""
    return partial(activate, activation=_kind(name))


def _kind(hidden_act: str) -> str:
    """Map `hidden_act` to the kernels' activation name."""
    return hidden_act if hidden_act in ("relu", "gelu") else "gelu_tanh"


class KnowledgePath(NamedTuple):
    """The part of a layer that is updated (Eq. 12); the other gradients are exactly 0."""

    neurons: Tensor
    """int64 [S], ascending: rows of keys, key_bias and values"""
    inputs: Tensor | None = None
    """bool [D], path full: coordinates of these neurons' keys; None: all"""
    outputs: Tensor | None = None
    """bool [D], path full: coordinates of their values; None: all"""
    norms: Tensor | None = None
    """float32 [2], path full: squared norms of what is kept of these neurons' gradients, and of all there was, to which
    every backward pass adds its own"""


class _RoutedFeedForward(torch.autograd.Function):
    """The layer with weight gradients on the path only; the gradient by its input is exact.

    It keeps [T, F] once, where torch's own keeps it before and after the activation.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        keys: Tensor,
        key_bias: Tensor,
        values: Tensor,
        value_bias: Tensor,
        path: KnowledgePath,
        kind: str,
    ) -> Tensor:
        before = F.linear(hidden, keys, key_bias)
        ctx.save_for_backward(hidden, before, keys, values)
        ctx.path, ctx.kind = path, kind
        return torch.addmm(value_bias, activate(before, kind), values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, before, keys, values = ctx.saved_tensors
        path, kind = ctx.path, ctx.kind
        by_activated = gradient @ values.t()
        by_before, chosen_gradient, chosen = activation_backward(by_activated, before, path.neurons, kind)
        by_keys, by_key_bias = path_weight_gradient(chosen_gradient, hidden, path.neurons, len(keys), with_bias=True)
        by_values, _ = path_weight_gradient(chosen, gradient, path.neurons, len(keys))
        for weight, kept in ((by_keys, path.inputs), (by_values, path.outputs)):
            if kept is not None and path.norms is not None:
                path.norms.add_(mask_columns(weight, path.neurons, kept))
        by_hidden = by_before @ keys if ctx.needs_input_grad[0] else None
        by_value_bias = gradient.sum(0) if ctx.needs_input_grad[4] else None
        return by_hidden, by_keys, by_key_bias, by_values, by_value_bias, None, None


class KeyValueFeedForward(nn.Module):
    """y = act(x keys^T + key_bias) values + value_bias.

    Neuron j is row j of `keys` [F, D], entry j of `key_bias` [F] and row j of `values` [F, D]: one neuron is one row
    everywhere. `values` is the transpose of Hugging Face's `output.dense.weight`; `value_bias` is [D].

    Attributes:
        path: what of keys, key_bias and values gets gradients; None: all. `value_bias` belongs to no neuron.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        neurons, size = config.intermediate_size, config.hidden_size
        self.keys = nn.Parameter(torch.empty(neurons, size))
        self.key_bias = nn.Parameter(torch.zeros(neurons))
        self.values = nn.Parameter(torch.empty(neurons, size))
        self.value_bias = nn.Parameter(torch.zeros(size))
        self.activation = activation(config.hidden_act)
        self.kind = _kind(config.hidden_act)
        self.path: KnowledgePath | None = None
        for weight in (self.keys, self.values):
            nn.init.normal_(weight, std=config.initializer_range)

    def forward(self, hidden: Tensor) -> Tensor:
        """Transform hidden states [T, D] -> [T, D], before dropout and residual."""
        if self.path is not None and torch.is_grad_enabled() and self.keys.requires_grad:
            weights = self.keys, self.key_bias, self.values, self.value_bias
            return _RoutedFeedForward.apply(hidden, *weights, self.path, self.kind)
        activated = self.activation(F.linear(hidden, self.keys, self.key_bias))
        return torch.addmm(self.value_bias, activated, self.values)
