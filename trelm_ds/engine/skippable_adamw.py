"""The optimizer that DeepSpeed drives: lazy AdamW, which can be told to leave a step out."""

from __future__ import annotations

from typing import Any

from trelm_ds.routing import LazyAdamW


class SkippableAdamW(LazyAdamW):
    """`LazyAdamW` that can be told to leave everything as it is.

    DeepSpeed calls `step` at the end of its own, once for every group or partition.

    Attributes:
        skips: whether `step` does nothing.
    """

    skips = False

    def step(self, closure: Any = None) -> Any:
        """One step, or none."""
        return None if self.skips else super().step(closure)
