"""The selector against a literal loop, the histogram against a sort, the band of long-tail words."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trelm_ds.config import Config, SelectionConfig
from trelm_ds.config_rules import problems
from trelm_ds.errors import UserError
from trelm_ds.knowledge import (
    STRATEGIES,
    EntityFrequencies,
    MentionSelector,
    Strategy,
    cosine_bar,
    cosine_histogram,
    histogram_values,
    long_tail_words,
    semantic_importance,
)

FREQUENCIES = EntityFrequencies(
    np.array([3, 5, 8, 13, 21, 34], dtype=np.int32),
    np.array([1, 2, 2, 7, 9, 30], dtype=np.int64),
    np.array([True, True, False, True, True, True]),
)


def literal(
    selection: SelectionConfig, mentions: np.ndarray, cosines: np.ndarray | None, bar: float | None
) -> list[bool]:
    """The definition, mention by mention."""
    about = {
        int(qid): (int(count), bool(triple)) for qid, count, triple in zip(*vars(FREQUENCIES).values(), strict=True)
    }
    threshold = selection.entity_threshold or sum(count for count, _ in about.values()) / len(about)
    chosen = [False] * len(mentions)
    for sequence in sorted(set(mentions[:, 0].tolist())):
        ranked = []
        for place, (owner, _, _, qid) in enumerate(mentions.tolist()):
            if owner != sequence or qid not in about:
                continue
            count, triple = about[qid]
            wanted = {
                "long_tail": count < threshold,
                "high_frequency": count >= threshold,
                "all": True,
                "none": False,
            }[selection.strategy]
            if cosines is None:
                important, priority = True, float(count)
            else:
                cosine = float(cosines[place])
                assert bar is not None
                important, priority = not math.isnan(cosine) and cosine <= bar, -(1 - cosine)
            if wanted and triple and important:
                ranked.append((priority, place))
        for _, place in sorted(ranked)[: selection.max_per_sequence]:
            chosen[place] = True
    return chosen


def draw_block(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mentions of some sequences (many, few or none in each) with cosines full of ties and NaN."""
    draw = np.random.default_rng(seed)
    count = int(draw.choice([0, 1, 2, 40]))
    owner = np.sort(draw.integers(0, draw.choice([1, 3, 30]), count))
    first = np.arange(count) * 2
    qids = draw.choice([*FREQUENCIES.qids, 4, 99], count)  # two that the corpus does not count
    mentions = np.column_stack([owner, first, first + 1, qids]).astype(np.int32)
    cosines = draw.choice([-0.5, -0.0, 0.0, 0.25, 0.5, 0.9, np.nan], count).astype(np.float16)
    return mentions, cosines


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("threshold", [None, 1, 2, 31])
def test_the_selector_is_the_literal_loop(strategy: Strategy, threshold: int | None) -> None:
    chosen = 0
    for seed in range(60):
        mentions, cosines = draw_block(seed)
        selection = SelectionConfig(strategy, threshold, max_per_sequence=[1, 2, 8][seed % 3])
        for scores, bar in ((None, None), (cosines, [0.0, 0.25, -math.inf][seed % 3])):
            found = MentionSelector(selection, FREQUENCIES, bar)(mentions, scores)
            assert found.dtype == bool
            assert found.tolist() == literal(selection, mentions, scores, bar)
            chosen += int(found.sum())
    nothing = strategy == "none" or (strategy, threshold) in (("long_tail", 1), ("high_frequency", 31))
    assert (chosen == 0) == nothing


def test_a_sequence_alone_is_chosen_as_in_its_block() -> None:
    selector = MentionSelector(SelectionConfig("all", max_per_sequence=2), FREQUENCIES, 0.25)
    for seed in range(40):
        mentions, cosines = draw_block(seed)
        whole = selector(mentions, cosines)
        for sequence in np.unique(mentions[:, 0]):
            mine = mentions[:, 0] == sequence
            np.testing.assert_array_equal(selector(mentions[mine], cosines[mine]), whole[mine])


def test_all_is_the_union_of_the_two_below_the_limit() -> None:
    mentions, cosines = draw_block(3)
    assert len(mentions) == 40
    kept = {
        name: MentionSelector(SelectionConfig(name, max_per_sequence=100), FREQUENCIES, 0.5)(mentions, cosines)
        for name in STRATEGIES
    }
    np.testing.assert_array_equal(kept["all"], kept["long_tail"] | kept["high_frequency"])
    assert not (kept["long_tail"] & kept["high_frequency"]).any()


def test_scores_without_a_bar_are_a_mistake_of_ours() -> None:
    mentions, cosines = draw_block(3)
    with pytest.raises(AssertionError):
        MentionSelector(SelectionConfig(), FREQUENCIES, None)(mentions, cosines)
    with pytest.raises(AssertionError):
        MentionSelector(SelectionConfig(), FREQUENCIES, 0.5)(mentions)


def test_no_entities_at_all() -> None:
    empty = EntityFrequencies(np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, bool))
    assert empty.mean == 0
    assert not MentionSelector(SelectionConfig("all"), empty, None)(draw_block(3)[0]).any()


def test_bins_are_the_values_in_order() -> None:
    values = histogram_values()
    finite = values[~np.isnan(values)].astype(np.float64)
    assert (np.diff(finite[finite != 0]) > 0).all()
    assert len(values) == 1 << 16


@pytest.mark.parametrize("quantile", [0.001, 0.1, 1 / 3, 0.5, 0.99, 1.0])
def test_the_bar_is_the_exact_quantile(quantile: float) -> None:
    draw = np.random.default_rng(0)
    cosines = np.concatenate([draw.uniform(-1, 1, 500), draw.uniform(0.95, 1, 2000), [0.0, -0.0, np.nan, np.nan]])
    cosines = cosines.astype(np.float16)
    bar = cosine_bar(cosine_histogram(cosines), quantile)
    ordered = np.sort(cosines[~np.isnan(cosines)])
    assert bar == ordered[math.ceil(quantile * len(ordered)) - 1]
    assert (ordered <= bar).sum() >= quantile * len(ordered) > (ordered < bar).sum()


def test_a_histogram_of_counted_values() -> None:
    cosines = np.array([0.5, np.nan, -0.25, 0.5], dtype=np.float16)
    repeated = cosine_histogram(np.repeat(cosines, [3, 5, 0, 2]))
    np.testing.assert_array_equal(cosine_histogram(cosines, np.array([3, 5, 0, 2])), repeated)
    assert repeated.sum() == 5


def test_semantic_importance_is_the_inverse() -> None:
    found = semantic_importance(np.array([1.0, 0.5, 0.0, -0.0, -0.5, np.nan], dtype=np.float16))
    np.testing.assert_array_equal(found, [1, 2, np.inf, np.inf, np.inf, np.nan])


def test_the_bar_of_no_scores_lets_nothing_pass() -> None:
    bar = cosine_bar(cosine_histogram(np.full(3, np.nan, dtype=np.float16)), 0.5)
    mentions, cosines = draw_block(3)
    assert not MentionSelector(SelectionConfig("all"), FREQUENCIES, bar)(mentions, cosines).any()


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        ({"entity_threshold": 0}, "entity_threshold"),
        ({"quantile": 0.0}, "quantile"),
        ({"quantile": 1.5}, "quantile"),
        ({"quantile": math.nan}, "quantile"),
        ({"max_per_sequence": 0}, "max_per_sequence"),
    ],
)
def test_settings_out_of_range(change: dict, setting: str) -> None:
    assert {name for name, _ in problems(Config(selection=SelectionConfig(**change)))} == {f"selection.{setting}"}


def test_long_tail_words_by_counts() -> None:
    counts = np.array([0, 99, 100, 300, 500, 501])
    assert long_tail_words(counts).tolist() == [False, False, True, True, True, False]
    assert long_tail_words(counts, 0, 99).tolist() == [False, True, False, False, False, False]
    assert long_tail_words(np.zeros(0, dtype=int)).tolist() == []


def test_long_tail_words_by_quantiles() -> None:
    counts = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1000])
    assert counts[long_tail_words(counts, quantiles=(0.2, 0.5))].tolist() == [2, 3, 4, 5]
    assert counts[long_tail_words(counts, quantiles=(0.0, 1.0))].tolist() == counts[2:].tolist()
    assert not long_tail_words(np.zeros(3, dtype=int), quantiles=(0.2, 0.5)).any()


@pytest.mark.parametrize("band", [{"low": 5, "high": 4}, {"low": -1}, {"quantiles": (0.5, 0.4)}, {"quantiles": (0, 2)}])
def test_an_empty_band_is_refused(band: dict) -> None:
    with pytest.raises(UserError, match="long-tail words"):
        long_tail_words(np.ones(3, dtype=int), **band)
