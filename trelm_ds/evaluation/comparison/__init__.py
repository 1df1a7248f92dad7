"""Results of several models side by side: one table, and whether differences are more than chance.

`find` collects result files by model, `sets` and `predictions` read them, `metrics` and `bootstrap` resample, `compare`
sets a model against the reference, `table` is the page as data, `markdown` and `page` write it down.
"""

from trelm_ds.evaluation.comparison.find import Model, find_models
from trelm_ds.evaluation.comparison.markdown import to_markdown
from trelm_ds.evaluation.comparison.page import to_html
from trelm_ds.evaluation.comparison.table import Table, compare_models

__all__ = ["Model", "Table", "compare_models", "find_models", "to_html", "to_markdown"]
