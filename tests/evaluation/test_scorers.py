"""Scorers against cases computed by hand."""

from __future__ import annotations

import pytest

from trelm_ds.evaluation.scorers import (
    Prf,
    accuracy,
    f1,
    loose_macro,
    loose_micro,
    matthews,
    pearson,
    relation_macro,
    relation_micro,
    spearman,
)

# Two of three predicted types are right, of four true ones.
GOLD_TYPES = [frozenset({"person", "artist"}), frozenset({"place"}), frozenset({"place"})]
TYPES = [frozenset({"person"}), frozenset({"place", "city"}), frozenset[str]()]


def test_loose_micro() -> None:
    assert loose_micro(GOLD_TYPES, TYPES) == pytest.approx((2 / 3, 2 / 4, 4 / 7))


def test_loose_macro() -> None:
    """Precisions 1, 1/2, 0 and recalls 1/2, 1, 0, over all three mentions."""
    assert loose_macro(GOLD_TYPES, TYPES) == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize("score", [loose_micro, loose_macro])
def test_no_type_predicted_or_none_there(score: type[Prf]) -> None:
    nothing = [frozenset[str]()] * 3
    assert score(GOLD_TYPES, nothing) == (0, 0, 0)
    assert score(nothing, TYPES) == (0, 0, 0)
    assert score(nothing, nothing) == (0, 0, 0)


NO = "no_relation"
#            right   wrong   missed  invented  true negative
GOLD = ["born", "born", "died", NO, NO]
GUESS = ["born", "died", NO, "died", NO]


def test_tacred_micro() -> None:
    """The official scorer: guessed 3, gold 3, correct 1."""
    assert relation_micro(GOLD, GUESS, NO) == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_relation_macro() -> None:
    """born: P 1, R 1/2, F1 2/3; died: 0."""
    assert relation_macro(GOLD, GUESS, NO) == pytest.approx((1 / 2, 1 / 4, 1 / 3))


def test_nothing_predicted_as_the_official_scorer_has_it() -> None:
    assert relation_micro(GOLD, [NO] * 5, NO) == (1.0, 0.0, 0.0)
    assert relation_macro(GOLD, [NO] * 5, NO) == (0.0, 0.0, 0.0)


def test_nothing_to_find() -> None:
    assert relation_micro([NO] * 5, GUESS, NO) == (0.0, 0.0, 0.0)
    assert relation_micro([NO] * 5, [NO] * 5, NO) == (1.0, 0.0, 0.0)
    assert relation_macro([NO] * 5, [NO] * 5, NO) == (0.0, 0.0, 0.0)


def test_every_label_is_a_relation() -> None:
    """Then micro precision, recall and F1 are the accuracy."""
    micro = relation_micro(GOLD, GUESS, None)
    assert micro == pytest.approx([accuracy(GOLD, GUESS)] * 3)
    assert micro.f1 == pytest.approx(2 / 5)


@pytest.mark.parametrize("negative", [NO, "NA", "zzz", "Other"])
def test_the_name_of_no_relation_and_the_order_of_labels_do_not_matter(negative: str) -> None:
    names = {NO: negative, "born": "9", "died": "a"}
    gold, guess = ([names[label] for label in labels] for labels in (GOLD, GUESS))
    assert relation_micro(gold, guess, negative) == relation_micro(GOLD, GUESS, NO)
    assert relation_macro(gold, guess, negative) == pytest.approx(relation_macro(GOLD, GUESS, NO))


def test_accuracy_and_f1_of_the_positive_label() -> None:
    gold, guess = ["1", "1", "0", "0"], ["1", "0", "1", "1"]
    assert accuracy(gold, guess) == 0.25
    assert f1(gold, guess, "1") == pytest.approx(2 / 5)  # P 1/3, R 1/2
    assert f1(["0", "0"], ["0", "0"], "1") == 0


def test_matthews() -> None:
    """TP 2, TN 1, FP 1, FN 1: (2 - 1) / sqrt(3 * 3 * 2 * 2)."""
    assert matthews(["1", "1", "1", "0", "0"], ["1", "1", "0", "1", "0"]) == pytest.approx(1 / 6)
    assert matthews(["1", "1"], ["1", "1"]) == 0  # one class only
    assert matthews(["1", "0"], ["1", "1"]) == 0


def test_correlations() -> None:
    gold, guess = [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 8.0]
    assert pearson(gold, guess) == pytest.approx(11 / (5 * 29) ** 0.5)  # sums of squares 5 and 29, of products 11
    assert spearman(gold, guess) == pytest.approx(1.0)
    assert spearman([1, 2, 3], [1, 1, 2]) == pytest.approx(0.75**0.5)  # ties have their mean rank
    assert pearson([1, 2, 3], [2, 2, 2]) == 0
    assert spearman([2, 2, 2], [1, 2, 3]) == 0
    assert pearson([1], [1]) == 0


@pytest.mark.parametrize("score", [accuracy, matthews, pearson, spearman])
def test_a_score_of_nothing_or_of_unequal_numbers_is_an_error(score: type[float]) -> None:
    with pytest.raises(ValueError, match="0 true labels, 0 predictions"):
        score([], [])
    with pytest.raises(ValueError, match="2 true labels, 1 predictions"):
        score([1, 2], [1])
