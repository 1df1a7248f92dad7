"""What is optimised beside masked language modelling: one file an objective, one line in `OBJECTIVES`."""

from trelm_ds.objectives.cka import ContrastiveAssessing
from trelm_ds.objectives.kepler import Kepler
from trelm_ds.objectives.objective import Objective, PreparedDataset

OBJECTIVES: tuple[Objective, ...] = (ContrastiveAssessing(), Kepler())

__all__ = ["OBJECTIVES", "Objective", "PreparedDataset"]
