"""Watch over compiled layers: a step that compiles again is slow, and nobody would notice why."""

from __future__ import annotations

from torch import Tensor

from trelm_ds import log
from trelm_ds.engine import compiled_graphs
from trelm_ds.training.component import Component

_SETTLED_AFTER = 100  # steps of this start, by which every kind of batch has come


class Compiling(Component):
    """Counts compiled graphs, and warns where there come ever more."""

    def __init__(self) -> None:
        self._before, self._steps, self._settled = compiled_graphs(), 0, 0

    def after_step(self, taken: bool) -> dict[str, int | Tensor]:
        """Count the step."""
        self._steps += 1
        if self._steps == _SETTLED_AFTER:
            self._settled = self._graphs
        return {}

    @property
    def _graphs(self) -> int:
        return compiled_graphs() - self._before

    def metrics(self, seconds: float) -> dict[str, float]:
        """Give the number of graphs since the start."""
        graphs = self._graphs
        if self._steps > _SETTLED_AFTER and graphs > self._settled:
            log.warning_rank0(
                f"trainer.compile: {graphs - self._settled} more graphs were compiled after step {_SETTLED_AFTER} of "
                "this start, each of which costs seconds to minutes; if it goes on, train without"
            )
            self._settled = graphs
        return {"compiled_graphs": float(graphs)}

    def describe(self) -> dict[str, str]:
        return {"compile": "the first passes compile the layers, which takes minutes"}
