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


def neuron_parts(rows: Tensor) -> dict[str, Tensor]:
    """Cut neurons, rows [n, 2 D + 1], into views by name: `keys` [n, D], `key_bias` [n] and `values` [n, D]."""
    size = rows.shape[1] // 2
    keys, key_bias, values = rows.split([size, 1, size], dim=1)
    return {"keys": keys, "key_bias": key_bias[:, 0], "values": values}


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

    Of a compact layer, keys, key_bias and values are those of the path's neurons. They are written into `whole`, the
    layer's buffers, with which everything is computed as without; their gradients have as many rows as they.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        keys: Tensor,
        key_bias: Tensor,
        values: Tensor,
        value_bias: Tensor | None,
        path: KnowledgePath,
        kind: str,
        whole: tuple[Tensor, Tensor, Tensor] | None,
    ) -> Tensor:
        ctx.compact = whole is not None
        if whole is not None:
            for all_, chosen in zip(whole, (keys, key_bias, values), strict=True):
                all_.index_copy_(0, path.neurons, chosen)
            keys, key_bias, values = whole
        before = F.linear(hidden, keys, key_bias)
        ctx.save_for_backward(hidden, before, keys, values)
        ctx.path, ctx.kind = path, kind
        return _combine(activate(before, kind), values, value_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, before, keys, values = ctx.saved_tensors
        path, kind = ctx.path, ctx.kind
        rows, count = path.neurons, len(keys)
        if ctx.compact:
            rows, count = torch.arange(len(rows), device=rows.device), len(rows)
        by_activated = gradient @ values.t()
        by_before, chosen_gradient, chosen = activation_backward(by_activated, before, path.neurons, kind)
        by_keys, by_key_bias = path_weight_gradient(chosen_gradient, hidden, rows, count, with_bias=True)
        by_values, _ = path_weight_gradient(chosen, gradient, rows, count)
        for weight, kept in ((by_keys, path.inputs), (by_values, path.outputs)):
            if kept is not None and path.norms is not None:
                path.norms.add_(mask_columns(weight, rows, kept))
        by_hidden = by_before @ keys if ctx.needs_input_grad[0] else None
        by_value_bias = gradient.sum(0) if ctx.needs_input_grad[4] else None
        return by_hidden, by_keys, by_key_bias, by_values, by_value_bias, None, None, None


def _combine(activated: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    return activated @ values if bias is None else torch.addmm(bias, activated, values)


class KeyValueFeedForward(nn.Module):
    """y = act(x keys^T + key_bias) values + value_bias.

    Neuron j is row j of `keys` [F, D], entry j of `key_bias` [F] and row j of `values` [F, D]: one neuron is one row
    everywhere. `values` is the transpose of Hugging Face's `output.dense.weight`; `value_bias` is [D].

    A compact layer (`make_compact`) has parameters of the path's S neurons alone, keys [S, D], key_bias [S] and values
    [S, D], and buffers `all_keys`, `all_key_bias`, `all_values` of all F.

    Attributes:
        path: what of keys, key_bias and values gets gradients; None: all. `value_bias` belongs to no neuron.
        own: which of all F neurons are here; tensor parallelism leaves a rank a part of them.
    """

    all_keys: Tensor | None
    all_key_bias: Tensor | None
    all_values: Tensor | None

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
        self.own = range(neurons)
        for name in ("all_keys", "all_key_bias", "all_values"):
            self.register_buffer(name, None, persistent=False)
        for weight in (self.keys, self.values):
            nn.init.normal_(weight, std=config.initializer_range)

    def forward(self, hidden: Tensor) -> Tensor:
        """Transform hidden states [T, D] -> [T, D], before dropout and residual."""
        return self._feed(hidden, self.value_bias)

    def _feed(self, hidden: Tensor, value_bias: Tensor | None) -> Tensor:
        """Compute what the neurons contribute, and add a bias [D]."""
        whole = self.whole
        if whole or (self.path is not None and torch.is_grad_enabled() and self.keys.requires_grad):
            weights = self.keys, self.key_bias, self.values, value_bias
            return _RoutedFeedForward.apply(hidden, *weights, self.path, self.kind, whole)
        return _combine(self.activation(F.linear(hidden, self.keys, self.key_bias)), self.values, value_bias)

    def summed(self, partial: Tensor) -> Tensor:
        """Sum what neurons contribute over the ranks that have them: here it is all of it already."""
        return partial

    @property
    def whole(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """A compact layer's buffers: keys [F, D], key_bias [F], values [F, D], of which the path's rows may be old."""
        if self.all_keys is None or self.all_key_bias is None or self.all_values is None:
            return None
        return self.all_keys, self.all_key_bias, self.all_values

    def make_compact(self, neurons: Tensor) -> None:
        """Keep only some neurons, int64 [S], as parameters, and all of them in buffers that no state dict holds."""
        for name in ("keys", "key_bias", "values"):
            weight = getattr(self, name)
            self.register_buffer(f"all_{name}", weight.detach().clone(), persistent=False)
            setattr(self, name, nn.Parameter(weight.detach()[neurons].clone(), requires_grad=weight.requires_grad))
        self.path = KnowledgePath(neurons)

    @torch.no_grad()
    def write_back(self) -> None:
        """Bring a compact layer's buffers up to date with its parameters, which must be whole (ZeRO 3)."""
        if self.whole is not None and self.path is not None:
            for all_, chosen in zip(self.whole, (self.keys, self.key_bias, self.values), strict=True):
                all_.index_copy_(0, self.path.neurons, chosen)
