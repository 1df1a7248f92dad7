"""AdamW that leaves alone what has no gradient, for the parameter groups that ask for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from trelm_kernels import bias_corrections, lazy_adamw


class LazyAdamW(torch.optim.AdamW):
    """torch's AdamW; in groups with `lazy=True` it acts only where the gradient is not exactly 0.

    Elsewhere weight, both moments and decay stay as they are, bit for bit, so neurons off the path are not touched.
    Bias is corrected by the number of updates an element has had, so that a neuron which comes onto the path late
    starts as one at the start does; torch's step counter would make its first steps several times too large. Where
    every element has a gradient in every step this is torch's AdamW.

    State of lazy groups: exp_avg and exp_avg_sq in the parameter's dtype, updates int16, and step. It knows nothing of
    rows, so DeepSpeed may hand it flat partitions that cut them anywhere (ZeRO 1 to 3).
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; `closure` as torch has it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        # States come about in the order of the groups, as in a run that is resumed: so both save the same bytes.
        for parameter in (parameter for group in groups for parameter in group["params"]):
            if parameter.grad is not None:
                self.state.setdefault(parameter, {})
        self.param_groups = [group for group in groups if not group.get("lazy")]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group.get("lazy"):
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._act(parameter, group)
        return loss

    def _act(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(
                (), dtype=torch.float32
            )  # torch and DeepSpeed look for it; nothing depends on it
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["updates"] = torch.zeros_like(parameter, dtype=torch.int16)
        elif state["updates"].dtype != torch.int16:  # torch loads all state in the parameter's dtype
            state["updates"] = state["updates"].to(torch.int16)
        state["step"] += 1
        corrections = bias_corrections(*map(float, group["betas"]), parameter.device)
        assert parameter.grad is not None
        lazy_adamw(
            parameter,
            parameter.grad,
            state["exp_avg"],
            state["exp_avg_sq"],
            state["updates"],
            corrections,
            float(group["lr"]),
            *map(float, group["betas"]),
            float(group["eps"]),
            float(group["weight_decay"]),
        )
