"""Planning: how much memory a run needs and how fast it should go, before it is started; and trials of the best."""

from trelm_ds.planning.choices import Choice
from trelm_ds.planning.hardware import GPUS, device_of
from trelm_ds.planning.node import ranks_here, this_node
from trelm_ds.planning.plan import Machine, Plan, Planned, Planner
from trelm_ds.planning.samples import open_for_planning
from trelm_ds.planning.shown import plot, print_table, to_plain, to_table
from trelm_ds.planning.trial import Stopped
from trelm_ds.planning.tune import Tuned, TuneOptions, Tuner, taken
from trelm_ds.planning.tuned import plot_tuned, rank_correlation, tuned_to_table, write_results
from trelm_ds.planning.written import command_to_use, without, write_choice

__all__ = [
    "GPUS",
    "Choice",
    "Machine",
    "Plan",
    "Planned",
    "Planner",
    "Stopped",
    "TuneOptions",
    "Tuned",
    "Tuner",
    "command_to_use",
    "device_of",
    "open_for_planning",
    "plot",
    "plot_tuned",
    "print_table",
    "rank_correlation",
    "ranks_here",
    "taken",
    "this_node",
    "to_plain",
    "to_table",
    "tuned_to_table",
    "without",
    "write_choice",
    "write_results",
]
