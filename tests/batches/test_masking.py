"""Masks: keyed by sample, so the same for any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest

from trelm_ds.batches import Masker, mask_rate
from trelm_ds.config import MaskingConfig
from trelm_ds.corpus import TokenizerInfo

INFO = TokenizerInfo(sha256="", vocab_size=1000, pad=0, unk=1, cls=2, sep=3, mask=4)
STARTS = np.arange(1000) % 3 != 0  # every third token continues a word


def packed(count: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(3, 60, count)
    tokens = draw.integers(5, 1000, lengths.sum())
    starts = np.cumsum(lengths) - lengths
    tokens[starts], tokens[np.cumsum(lengths) - 1] = INFO.cls, INFO.sep
    return tokens, lengths, draw.integers(0, 3, count), np.arange(count) * 7


def masker(**changes: object) -> Masker:
    return Masker(MaskingConfig(**changes), INFO, STARTS, seed=5)  # type: ignore[arg-type]


def test_the_shares_are_those_asked_for() -> None:
    tokens, lengths, epochs, ids = packed(4000)
    masked, chosen = masker()(tokens, lengths, epochs, ids)
    ordinary = (tokens > 4).sum()
    assert abs(len(chosen) / ordinary - 0.15) < 0.005
    shown = masked[chosen]
    assert abs((shown == INFO.mask).mean() - 0.8) < 0.01
    changed = (shown != INFO.mask) & (shown != tokens[chosen])
    assert abs(changed.mean() - 0.1) < 0.01
    untouched = np.setdiff1d(np.arange(len(tokens)), chosen)
    np.testing.assert_array_equal(masked[untouched], tokens[untouched])


def test_special_tokens_are_neither_chosen_nor_drawn() -> None:
    tokens, lengths, epochs, ids = packed(1000)
    masked, chosen = masker(probability=1.0, mask_share=0.0, random_share=1.0)(tokens, lengths, epochs, ids)
    np.testing.assert_array_equal(chosen, np.flatnonzero(tokens > 4))
    assert masked[chosen].min() > 4


def test_an_unknown_word_can_be_chosen() -> None:
    tokens = np.array([INFO.cls, INFO.unk, 7, INFO.sep])
    _, chosen = masker(probability=1.0)(tokens, np.array([4]), np.array([0]), np.array([0]))
    assert chosen.tolist() == [1, 2]


def test_whole_words_are_chosen_together() -> None:
    tokens, lengths, epochs, ids = packed()
    _, chosen = masker()(tokens, lengths, epochs, ids)
    is_chosen = np.isin(np.arange(len(tokens)), chosen)
    starts = set(np.cumsum(lengths) - lengths)
    together = [
        is_chosen[row] == is_chosen[row - 1]
        for row in range(2, len(tokens))
        if not STARTS[tokens[row]] and tokens[row] > 4 and tokens[row - 1] > 4 and row - 1 not in starts
    ]
    assert len(together) > 1000
    assert all(together)
    _, single = masker(whole_word=False)(tokens, lengths, epochs, ids)
    assert not np.array_equal(chosen, single)


def test_a_samples_mask_does_not_depend_on_its_neighbours() -> None:
    tokens, lengths, epochs, ids = packed(20)
    masked, chosen = masker()(tokens, lengths, epochs, ids)
    ends = np.cumsum(lengths)
    for number in range(20):
        rows = slice(ends[number] - lengths[number], ends[number])
        one = slice(number, number + 1)
        alone, own = masker()(tokens[rows], lengths[one], epochs[one], ids[one])
        np.testing.assert_array_equal(alone, masked[rows])
        np.testing.assert_array_equal(own + rows.start, chosen[(chosen >= rows.start) & (chosen < rows.stop)])


@pytest.mark.parametrize("change", ["epoch", "sample", "seed"])
def test_another_key_gives_another_mask(change: str) -> None:
    tokens, lengths, epochs, ids = packed()
    _, before = masker()(tokens, lengths, epochs, ids)
    other = Masker(MaskingConfig(), INFO, STARTS, seed=6) if change == "seed" else masker()
    _, after = other(tokens, lengths, epochs + (change == "epoch"), ids + (change == "sample"))
    assert len(np.intersect1d(before, after)) < 0.3 * len(before)


@pytest.mark.parametrize(
    ("probability", "steps_done", "max_steps", "rate"),
    [
        (0.3, 7, 9, 0.3),
        ((0.5, 0.25), 0, 5, 0.5),
        ((0.5, 0.25), 2, 5, 0.375),
        ((0.5, 0.25), 4, 5, 0.25),  # the last step
        ((0.5, 0.25), 9, 5, 0.25),
        ((0.25, 0.5), 1, 3, 0.375),  # it may grow
        ((0.5, 0.25), 0, 1, 0.5),
    ],
)
def test_the_rate_is_linear_from_the_first_step_to_the_last(
    probability: float | tuple[float, float], steps_done: int, max_steps: int, rate: float
) -> None:
    assert mask_rate(MaskingConfig(probability=probability), steps_done, max_steps) == rate


def test_a_step_masks_its_share_and_a_lower_rate_some_of_the_same_words() -> None:
    tokens, lengths, epochs, ids = packed(4000)
    falling = Masker(MaskingConfig(probability=(0.3, 0.1)), INFO, STARTS, seed=5, max_steps=101)
    chosen = {step: falling(tokens, lengths, epochs, ids, step)[1] for step in (0, 50, 100)}
    ordinary = (tokens > 4).sum()
    shares = [len(chosen[step]) / ordinary for step in (0, 50, 100)]
    np.testing.assert_allclose(shares, [0.3, 0.2, 0.1], atol=0.005)
    assert set(chosen[100]) < set(chosen[50]) < set(chosen[0])
    middle = masker(probability=0.2)(tokens, lengths, epochs, ids)
    np.testing.assert_array_equal(middle[1], chosen[50])
