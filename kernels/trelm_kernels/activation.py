"""Backward pass of a feed-forward layer's activation that also gathers the columns of the chosen neurons."""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

ACTIVATIONS = ("relu", "gelu", "gelu_tanh")
BLOCK_T, BLOCK_F = 16, 128


def activate(inputs: Tensor, activation: str) -> Tensor:
    """Apply the activation function of that name.

    Raises:
        ValueError: the name is not in ACTIVATIONS.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: must be one of {', '.join(ACTIVATIONS)}, got {activation}")
    if activation == "relu":
        return F.relu(inputs)
    return F.gelu(inputs, approximate="none" if activation == "gelu" else "tanh")


def before_activation(gradient: Tensor, inputs: Tensor, activation: str) -> Tensor:
    """Compute the gradient with respect to the activation's inputs from the gradient with respect to its outputs."""
    if activation == "relu":
        return torch.where(inputs <= 0, 0, gradient)
    return torch.ops.aten.gelu_backward(gradient, inputs, approximate="none" if activation == "gelu" else "tanh")


def padded(chosen: int) -> int:
    """Round the number of chosen columns up to a multiple of 16, so that a GPU can read rows in aligned vectors."""
    return -(-chosen // 16) * 16


def reference(gradient: Tensor, inputs: Tensor, rows: Tensor, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `activation_backward` in plain torch."""
    input_gradient = before_activation(gradient, inputs, activation).contiguous()
    gap = padded(len(rows)) - len(rows)
    chosen_gradient, chosen = input_gradient.index_select(1, rows), activate(inputs.index_select(1, rows), activation)
    return input_gradient, F.pad(chosen_gradient, (0, gap)), F.pad(chosen, (0, gap))


@triton.jit
def backward_and_compact(
    gradient,
    inputs,
    slots,
    input_gradient,
    chosen_gradient,
    chosen_output,
    tokens,
    neurons,
    chosen_stride,
    gradient_stride,
    inputs_stride,
    ACTIVATION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """Process one tile of tokens x neurons.

    Writing the chosen columns here is cheap, because their values are in registers. A separate gather would read nearly
    every memory sector again.
    """
    t = (tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    inside = (t < tokens)[:, None] & (f < neurons)[None, :]
    slot = tl.load(slots + f, mask=f < neurons, other=-1)
    g = tl.load(gradient + t[:, None] * gradient_stride + f[None, :], mask=inside, other=0.0)
    x = tl.load(inputs + t[:, None] * inputs_stride + f[None, :], mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == "relu":
        slope = tl.where(x <= 0, 0.0, 1.0)
        output = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "gelu":
        cdf = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        slope = cdf + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
        output = x * cdf
    else:
        twice = 1.5957691216057308 * (x + 0.044715 * x * x * x)  # (1 + tanh(u)) / 2 = sigmoid(2 u)
        cdf = tl.sigmoid(twice)
        slope = cdf + x * cdf * tl.sigmoid(-twice) * (1.5957691216057308 * (1.0 + 0.134145 * x * x))
        output = x * cdf
    back = g.to(tl.float32) * slope
    if ACTIVATION == "relu":
        back = tl.where(x <= 0, 0.0, back)  # not g * slope: inf * 0 would be NaN
    back = back.to(g.dtype)
    tl.store(input_gradient + t[:, None] * neurons + f[None, :], back, mask=inside)
    offset = t[:, None] * chosen_stride + slot[None, :]
    kept = inside & (slot >= 0)[None, :]
    tl.store(chosen_gradient + offset, back, mask=kept)
    tl.store(chosen_output + offset, output.to(g.dtype), mask=kept)


def launch(gradient: Tensor, inputs: Tensor, rows: Tensor, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `activation_backward` with the kernel."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: must be one of {', '.join(ACTIVATIONS)}, got {activation}")
    tokens, neurons = inputs.shape
    gradient, inputs = (x if x.stride(1) == 1 else x.contiguous() for x in (gradient, inputs))
    input_gradient = gradient.new_empty(tokens, neurons)
    chosen_gradient, chosen_output = (gradient.new_empty(tokens, padded(len(rows))) for _ in range(2))
    if tokens and neurons:
        slots = torch.full((neurons,), -1, dtype=torch.int32, device=rows.device)
        slots[rows] = torch.arange(len(rows), dtype=torch.int32, device=rows.device)
        backward_and_compact[(triton.cdiv(tokens, BLOCK_T), triton.cdiv(neurons, BLOCK_F))](
            gradient,
            inputs,
            slots,
            input_gradient,
            chosen_gradient,
            chosen_output,
            tokens,
            neurons,
            padded(len(rows)),
            gradient.stride(0),
            inputs.stride(0),
            ACTIVATION=activation,
            BLOCK_T=BLOCK_T,
            BLOCK_F=BLOCK_F,
            num_warps=4,
        )
    return input_gradient, chosen_gradient, chosen_output


@torch.library.custom_op("trelm::activation_backward", mutates_args=(), device_types="cpu")
def activation_backward(
    gradient: Tensor, inputs: Tensor, rows: Tensor, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the activation's backward pass and gather the chosen neurons' columns.

    Args:
        gradient: [T, F], gradient with respect to the activation's outputs.
        inputs: [T, F], the activation's inputs, of the same dtype.
        rows: int64 [S], chosen neurons, distinct, in 0 ... F - 1.
        activation: a name in ACTIVATIONS.

    Returns:
        The gradient with respect to the inputs [T, F]; its columns `rows` [T, P], where P = padded(S) and the last
        P - S columns are undefined; the activation's outputs at `rows` [T, P], padded likewise.
    """
    return reference(gradient, inputs, rows, activation)


activation_backward.register_kernel("cuda")(launch)


@activation_backward.register_fake
def _(gradient: Tensor, inputs: Tensor, rows: Tensor, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    compact = gradient.shape[0], padded(rows.shape[0])
    return gradient.new_empty(gradient.shape), gradient.new_empty(compact), gradient.new_empty(compact)
