"""Planning: how much memory a run needs and how fast it should go, before it is started; and trials of the best."""

from trelm_ds.planning.choices import Choice
from trelm_ds.planning.hardware import GPUS, device_of
from trelm_ds.planning.plan import Machine, Plan, Planned, Planner
from trelm_ds.planning.samples import open_for_planning
from trelm_ds.planning.shown import plot, print_table, to_plain, to_table
from trelm_ds.planning.written import write_choice

__all__ = [
    "GPUS",
    "Choice",
    "Machine",
    "Plan",
    "Planned",
    "Planner",
    "device_of",
    "open_for_planning",
    "plot",
    "print_table",
    "to_plain",
    "to_table",
    "write_choice",
]
