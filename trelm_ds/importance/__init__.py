"""Semantic importance of mentions (Eq. 1): scoring, stored scores, and comparison of Figure 3's strategies."""

from trelm_ds.importance.job import Part, ScoreOptions, ScoreResult, score_dataset
from trelm_ds.importance.scorer import MentionScorer
from trelm_ds.importance.store import ImportanceScores, load_frequencies, open_scores, open_selector
from trelm_ds.importance.strategies import compare_strategies, format_strategies, plot_strategies

__all__ = [
    "ImportanceScores",
    "MentionScorer",
    "Part",
    "ScoreOptions",
    "ScoreResult",
    "compare_strategies",
    "format_strategies",
    "load_frequencies",
    "open_scores",
    "open_selector",
    "plot_strategies",
    "score_dataset",
]
