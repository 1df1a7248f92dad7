"""The LAMA probe: can a masked language model fill in the object of a fact? (Petroni et al., 2019)

`data` reads LAMA's files, `probes` makes prompts of facts, `candidates` says what may be answered, `answers` runs the
model, `scoring` computes the figures, `groups` and `uhn` say which facts are also scored apart, `evaluate` does it all.
"""

from trelm_ds.evaluation.lama.evaluate import LamaOptions, LamaResult, evaluate_lama
from trelm_ds.evaluation.lama.report import format_lama, plot_lama, write_lama

__all__ = ["LamaOptions", "LamaResult", "evaluate_lama", "format_lama", "plot_lama", "write_lama"]
