"""A rank's part of the model as a list of parameters, with what the optimizer makes of each."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from trelm_ds.engine import parameter_groups


class Parameter(NamedTuple):
    """A parameter, or a rank's part of one."""

    name: str
    elements: int
    group: int | None
    """the optimizer's group that it is in; None where it is frozen"""
    lazy: bool = False
    """whether lazy AdamW updates it, which counts updates"""


class Parameters(NamedTuple):
    """All that a rank has of a model."""

    parameters: tuple[Parameter, ...]
    buffers: int
    """elements of compact layers, which no ZeRO stage shares out"""

    @classmethod
    def of(cls, model: nn.Module, routed: bool) -> Parameters:
        """List those of a model, which may have no values.

        Args:
            routed: whether its neurons are in groups of their own.
        """
        places = {
            parameter: (number, bool(group.get("lazy")))
            for number, group in enumerate(parameter_groups(model, 0.0, routed))
            for parameter in group["params"]
        }
        found = tuple(
            Parameter(name, parameter.numel(), *places.get(parameter, (None, False)))
            for name, parameter in model.named_parameters()
        )
        return cls(found, sum(buffer.numel() for buffer in model.buffers()))

    @property
    def trained(self) -> int:
        """Elements with gradients."""
        return sum(one.elements for one in self.parameters if one.group is not None)

    @property
    def frozen(self) -> int:
        """Elements without."""
        return sum(one.elements for one in self.parameters if one.group is None)

    @property
    def groups(self) -> list[list[Parameter]]:
        """The trained ones, by group."""
        found: dict[int, list[Parameter]] = {}
        for one in self.parameters:
            if one.group is not None:
                found.setdefault(one.group, []).append(one)
        return list(found.values())
