"""Triton kernels of trelm-ds, each next to its plain-torch reference; depends on torch and Triton alone.

Every function takes tensors on the CPU, where the reference runs, or on CUDA, where the kernel runs. The kernels are
registered with torch.library, so that torch.compile keeps them in its graph, and are deterministic.
"""

from trelm_kernels.activation import ACTIVATIONS, activate, activation_backward, before_activation
from trelm_kernels.adamw import MAX_STEPS, bias_corrections, lazy_adamw
from trelm_kernels.path_mask import mask_columns
from trelm_kernels.riemann import riemann_scores
from trelm_kernels.weight_gradient import path_weight_gradient

__all__ = [
    "ACTIVATIONS",
    "MAX_STEPS",
    "activate",
    "activation_backward",
    "before_activation",
    "bias_corrections",
    "lazy_adamw",
    "mask_columns",
    "path_weight_gradient",
    "riemann_scores",
]
