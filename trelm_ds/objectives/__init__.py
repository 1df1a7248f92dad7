"""What is optimised beside masked language modelling: one file an objective, one line in `OBJECTIVES`."""

from trelm_ds.objectives.cka import ContrastiveAssessing
from trelm_ds.objectives.objective import Objective, PreparedDataset

OBJECTIVES: tuple[Objective, ...] = (ContrastiveAssessing(),)

__all__ = ["OBJECTIVES", "Objective", "PreparedDataset"]
