"""What is shown and written of trials."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from tests.planning.made_plans import choice, plan_of, planned
from trelm_ds.planning.shown import print_table
from trelm_ds.planning.trial import Outcome
from trelm_ds.planning.trials import Result
from trelm_ds.planning.tune import Tuned
from trelm_ds.planning.tuned import (
    plot_tuned,
    rank_correlation,
    results_to_plain,
    tuned_to_table,
    write_results,
)
from trelm_ds.planning.verdict import Status


def result(stage: int, tokens: int, plan: float, measured: float | None, status: Status = "ok") -> Result:
    reason = "" if status == "ok" else f"why it {status}"
    return Result(planned(choice(stage, tokens), plan), Outcome(status, reason, 4, 7.0, measured, 3 * 2**28))


RESULTS = [
    result(0, 2048, 100, 50),
    result(0, 4096, 200, 60),
    result(1, 2048, 300, 55),
    result(1, 4096, 400, 70),
    result(2, 2048, 500, None, "crashed"),
]
TUNED = Tuned(
    plan=plan_of(*(one.planned for one in RESULTS)),
    results=RESULTS,
    beyond=[planned(choice(3, tokens), 1, 9.0) for tokens in (8192, 4096, 16384)],
    left=2,
    configured=choice(0, 2048),
    complete=True,
)


def test_rank_correlation_by_hand() -> None:
    # Ranks 1 2 3 4 against 1 3 2 4: 1 - 6 * 2 / (4 * 15).
    assert rank_correlation(TUNED.done) == pytest.approx(0.8)
    assert rank_correlation(TUNED.done[:3]) is None
    assert rank_correlation([result(0, 2048, 100, speed) for speed in (1, 2, 3, 4)]) is None


def test_the_fastest_is_the_best() -> None:
    assert TUNED.best is RESULTS[3]
    assert TUNED._replace(results=RESULTS[4:]).best is None


def test_the_table_says_all(capsys: pytest.CaptureFixture[str]) -> None:
    Console(width=200, highlight=False).print(tuned_to_table(TUNED))
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines() if line.strip().startswith("zero")]
    assert [row[0] for row in rows] == ["zero1-4096", "zero0-4096", "zero1-2048", "zero0-2048", "zero2-2048"]
    assert rows[0] == ["zero1-4096", "400", "70", "0.10", "0.75", "7", "ok"]
    assert rows[-1] == ["zero2-2048", "500", "0.10", "0.75", "7", "crashed", "why", "it", "crashed"]
    for line in (
        "1 x this CPU, 0.50 GiB for tensors each",
        "as the settings have it: zero0-2048",
        "Spearman's rank correlation of planned and measured speed of 4 trials: 0.80",
        "not tried, 3 choices that the plan gives over 20% more memory than there is: from zero3-4096 on",
        "not tried, 2 other choices: more --trials or --budget-minutes go on from here",
    ):
        assert line in shown


def test_what_a_trial_said_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    said = "no [bold] file [/data/x] :smile:"
    failed = Result(planned(choice(0, 2048), 100), Outcome("crashed", said, 0, 1.0))
    print_table(tuned_to_table(TUNED._replace(results=[failed])))
    assert said in capsys.readouterr().out


def test_results_as_json(tmp_path: Path) -> None:
    write_results(TUNED, tmp_path / "results.json")
    found = json.loads((tmp_path / "results.json").read_text())
    assert found == json.loads(json.dumps(results_to_plain(TUNED)))
    assert (found["best"], found["configured"]) == ("zero1-4096", "zero0-2048")
    assert [trial["status"] for trial in found["trials"]] == ["ok"] * 4 + ["crashed"]
    assert found["trials"][0]["planned"]["tokens_per_s"] == 100


def test_a_picture(tmp_path: Path) -> None:
    plot_tuned(TUNED.done, tmp_path / "tune.png")
    assert (tmp_path / "tune.png").read_bytes().startswith(b"\x89PNG")
