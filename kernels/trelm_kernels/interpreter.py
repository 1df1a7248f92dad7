"""What Triton's interpreter (TRITON_INTERPRET=1, kernels on the CPU) needs done differently."""

import torch
from triton.runtime.interpreter import InterpretedFunction


def must_widen(kernel: object, dtype: torch.dtype) -> bool:
    """Whether operands of tl.dot have to be float32: the interpreter multiplies the bit patterns of bfloat16."""
    return dtype == torch.bfloat16 and isinstance(kernel, InterpretedFunction)
