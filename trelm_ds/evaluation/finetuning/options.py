"""How a model is fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass

from trelm_ds.errors import UserError


@dataclass(frozen=True)
class FinetuneOptions:
    """Hyper-parameters of one fine-tuning, but for learning rate and seed.

    Raises:
        UserError: one is out of range; names the command line's option.
    """

    epochs: int
    """passes over the training split at most"""
    batch_size: int
    """examples per optimizer step, over all ranks"""
    patience: int
    """stop after so many epochs without a better dev score, and score the best epoch; 0: score the last one"""
    warmup: float = 0.06
    """share of the steps in which the learning rate rises; it falls linearly to 0 afterwards"""
    weight_decay: float = 0.01
    """of matrices; biases and LayerNorm have none"""
    max_grad_norm: float = 1.0
    """norm to which gradients are cut"""
    precision: str = "fp32"
    """fp32, or bf16 for the matrix products, with weights in fp32"""
    max_length: int | None = None
    """longest text or pair in tokens; None: what the model can read"""
    truncate: bool = False
    """cut longer ones instead of refusing them"""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')}: must be at least 1, got {getattr(self, name)}")
        if self.patience < 0:
            raise UserError(f"--early-stopping: must be at least 0, got {self.patience}")
        if not 0 <= self.warmup < 1:
            raise UserError(f"--warmup: must be at least 0 and less than 1, got {self.warmup}")
        if not 0 <= self.weight_decay < 1:
            raise UserError(f"--weight-decay: must be at least 0 and less than 1, got {self.weight_decay}")
        if self.max_length is not None and self.max_length < 8:
            raise UserError(f"--max-length: must be at least 8, got {self.max_length}")
