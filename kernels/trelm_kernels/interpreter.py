"""Workarounds for Triton's interpreter (TRITON_INTERPRET=1, kernels on the CPU)."""

import torch
from triton.runtime.interpreter import InterpretedFunction


def must_widen(kernel: object, dtype: torch.dtype) -> bool:
    """Tell whether operands of tl.dot must be cast to float32: the interpreter multiplies bfloat16 as bit patterns."""
    return dtype == torch.bfloat16 and isinstance(kernel, InterpretedFunction)
