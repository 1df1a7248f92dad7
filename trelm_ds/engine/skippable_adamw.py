"""The optimizer that DeepSpeed drives: lazy AdamW that can skip a step."""

from __future__ import annotations

from typing import Any

from trelm_ds.routing import LazyAdamW


class SkippableAdamW(LazyAdamW):
    """`LazyAdamW` whose next steps can be skipped.

    DeepSpeed has no way to skip an optimizer step from outside: it calls `step` at the end of its own, once for every
    group or partition.

    Attributes:
        skips: while true, `step` changes nothing.
    """

    skips = False

    def step(self, closure: Any = None) -> Any:
        """Take one optimizer step, unless `skips` is set."""
        return None if self.skips else super().step(closure)
