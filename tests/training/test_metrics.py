"""What a window of training comes to."""

from __future__ import annotations

import pytest

from trelm_ds.training.metrics import summary

TOTALS = {
    "mlm_loss": 600.0,
    "mlm_correct": 50.0,
    "mlm_targets": 200,
    "cka_loss": 30.0,
    "cka_correct": 6.0,
    "cka_targets": 15,
    "tokens": 4000,
    "sequences": 100,
    "mentions": 150,
    "injected": 60,
    "facts": 10,
    "query tokens": 400,
    "looked up": 80,
    "hits": 20,
    "memory rows": 120,
    "steps": 4,
    "corrupted": 3,
}
EQUAL = {"mlm": 0.5, "cka": 0.5}


def test_losses_are_means_over_tokens_and_eq_3_weighs_them() -> None:
    metrics = summary(TOTALS, {"mlm": 0.75, "cka": 0.25}, seconds=2.0)
    assert metrics["mlm_loss"] == 3
    assert metrics["cka_loss"] == 2
    assert metrics["loss"] == 0.75 * 3 + 0.25 * 2
    assert (metrics["accuracy"], metrics["cka_accuracy"]) == (0.25, 0.4)


def test_rates_and_shares() -> None:
    metrics = summary(TOTALS, EQUAL, seconds=2.0)
    expected = {
        "tokens_per_s": 2000,
        "sequences_per_s": 50,
        "mentions_per_sequence": 1.5,
        "injected_per_sequence": 0.6,
        "facts_per_sequence": 0.1,
        "query_token_share": 0.1,
        "memory_rows": 30,
        "memory_hit_rate": 0.25,
        "corrupted_samples": 3,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


def test_plain_masked_language_modelling_says_nothing_of_knowledge() -> None:
    plain = {name: TOTALS[name] for name in ("mlm_loss", "mlm_correct", "mlm_targets", "tokens", "sequences")}
    metrics = summary(plain, {"mlm": 1.0}, seconds=2.0)
    assert metrics["loss"] == metrics["mlm_loss"] == 3
    assert not any(name.startswith(("cka", "memory", "facts", "injected")) for name in metrics)


def test_a_window_without_a_fact_has_no_loss_of_it() -> None:
    metrics = summary(TOTALS | {"cka_loss": 0.0, "cka_correct": 0.0, "cka_targets": 0}, EQUAL, seconds=1.0)
    assert "cka_loss" not in metrics
    assert "cka_accuracy" not in metrics
    assert metrics["loss"] == 1.5


def test_what_a_part_counts_beside_is_logged_per_step() -> None:
    assert summary(TOTALS | {"my own": 8}, EQUAL, seconds=1.0)["my_own_per_step"] == 2
