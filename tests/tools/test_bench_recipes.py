"""The tables of `recipes.py` from records of runs."""

from __future__ import annotations

import sys
from typing import Any

from tests.e2e.launch import ROOT

sys.path.insert(0, str(ROOT / "tools" / "bench"))
from recipes_report import report, tables


def record(name: str, seed: int, score: float, ways: tuple[float, float] | None) -> dict[str, Any]:
    gate = {} if ways is None else {
        step: {"loss": {}, "way": way, "passes": way > 0.2} for step, way in zip(("5", "10"), ways, strict=True)
    }  # fmt: skip
    return {
        "name": name,
        "seed": seed,
        "steps": 10,
        "p_at_1": {"held_out": score, "all": 2 * score},
        "majority": {"held_out": 3.0, "all": 4.0},
        "facts": {"held_out": 7, "all": 70},
        "doses": {},
        "gate": gate,
        "seconds_per_step": 0.1,
        "curve": {"step": [10], "mlm_loss": [1.0]},
    }


def test_tables_compare_seed_by_seed() -> None:
    scores = {"trelm": (40.0, 50.0), "queries_only": (20.0, 30.2), "mlm": (10.0, 90.0)}
    gates = {"trelm": ((0.1, 0.3), (0.3, 0.5))}
    records = [
        record(name, seed, score, gates[name][seed] if name in gates else None)
        for name, both in scores.items()
        for seed, score in enumerate(both)
    ]
    said = tables(report(records))
    less_trelm = said.split("less trelm")[1].split("less queries_only")[0]
    assert "| queries_only | -19.9 ± 1.3 | -39.8 ± 2.5 |" in less_trelm
    assert "| mlm | not resolved at n = 2" in less_trelm
    assert "| most frequent answer | 3.0 | 4.0 | |" in said
    assert "| *facts* | 7 | 70 | |" in said
    gate = said.split("h_e's way")[1:]
    assert len(gate) == 2
    assert "| trelm | 20.0 ± 127.1 | 1 of 2 | 40.0 ± 127.1 | 2 of 2 |" in said
    assert sum(line.startswith("| queries_only") for line in said.splitlines()) == 2


def test_nothing_is_said_of_gates_where_nothing_is_injected() -> None:
    assert "way" not in tables(report([record("mlm", 0, 1.0, None)]))
