"""Ranks and scores against hand-computed cases."""

from __future__ import annotations

import pytest
import torch

from trelm_ds.evaluation.lama.scoring import macro_average, majority_ranks, micro_average, ranks_of, score_facts

NONE = {"p_at_1": None, "p_at_10": None, "mrr": None}


def test_ranks() -> None:
    scores = torch.tensor([[0.5, 2.0, -1.0], [3.0, 3.0, 3.0], [1.0, 1.0, 2.0], [-0.5, -1.0, -1.0]])
    # Second: the only best. All equal: the third column comes last. Tied for second: the first and the second column.
    assert ranks_of(scores, torch.tensor([1, 2, 1, 2])).tolist() == [1, 3, 3, 3]
    assert ranks_of(scores, torch.tensor([0, 0, 0, 1])).tolist() == [2, 1, 2, 2]


def test_majority_guess_ranks_by_frequency() -> None:
    assert majority_ranks(["a", "b", "b", "c", "b", "c"]) == [3, 1, 1, 2, 1, 2]
    assert majority_ranks(["a", "b"]) == [1, 2]
    assert majority_ranks([]) == []


def test_scores_of_one_relation() -> None:
    score = score_facts([1, 2, 10, 11], ["x", "y", "y", "z"])
    assert score == {
        "p_at_1": 1 / 4,
        "p_at_10": 3 / 4,
        "mrr": pytest.approx((1 + 1 / 2 + 1 / 10 + 1 / 11) / 4),
        "majority_baseline": {"p_at_1": 2 / 4, "p_at_10": 1.0, "mrr": pytest.approx((1 / 2 + 1 + 1 + 1 / 3) / 4)},
        "n_facts": 4,
    }
    assert score_facts([], []) == {**NONE, "majority_baseline": NONE, "n_facts": 0}


def test_macro_weighs_relations_and_micro_facts() -> None:
    relations = [([1, 1, 5, 5], ["a", "b", "c", "d"]), ([20], ["a"]), ([], [])]
    macro = macro_average(score_facts(*one) for one in relations)
    assert (macro["p_at_1"], macro["p_at_10"], macro["n_facts"], macro["n_relations"]) == (1 / 4, 1 / 2, 5, 2)
    assert macro["mrr"] == pytest.approx((2.4 / 4 + 1 / 20) / 2)
    assert macro["majority_baseline"]["p_at_1"] == (1 / 4 + 1) / 2
    micro = micro_average(relations)
    assert (micro["p_at_1"], micro["p_at_10"]) == (2 / 5, 4 / 5)
    assert micro["majority_baseline"]["p_at_1"] == 2 / 5
    empty = macro_average([score_facts([], [])])
    assert empty == {**NONE, "majority_baseline": NONE, "n_facts": 0, "n_relations": 0}
