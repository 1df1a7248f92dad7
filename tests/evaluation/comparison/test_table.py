"""The table: what is best, what is compared and what is not."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.comparison.makers import (
    RELATIONS,
    change,
    classified,
    guesses,
    related,
    typed,
    write_finetuned,
    write_glue,
    write_lama,
)
from trelm_ds.errors import UserError
from trelm_ds.evaluation.comparison.find import find_models
from trelm_ds.evaluation.comparison.table import Line, Table, compare_models


def table_of(*arguments: object, **options: Any) -> Table:
    return compare_models(find_models([str(argument) for argument in arguments]), **{"resamples": 200} | options)


def typing(path: str, share: float = 0.5, seeds: int = 3, n: int = 60, salt: object = "", model: str = "") -> Path:
    gold = typed(n)
    return write_finetuned(Path(path), "typing", gold, guesses(gold, share, seeds, salt), model=model or path)


def line(table: Table, task: str, measure: str) -> Line:
    (found,) = (one for one in table.lines if (one.task, one.measure) == (task, measure))
    return found


def test_the_rows_are_the_papers(here: Path) -> None:
    gold = classified()
    runs = guesses(gold, 0.7, 2)
    tasks = {name: {"dev": (gold, runs)} for name in ("rte", "mrpc", "cola", "sst-2", "qnli", "qqp")}
    tasks["mnli"] = {"dev_mismatched": (gold, runs), "dev": (gold, runs)}
    scores = [float(label) for label in gold]
    tasks["sts-b"] = {"dev": (scores, [[float(label) for label in run] for run in runs])}
    files = [
        write_glue(here / "g.json", tasks),
        write_finetuned(here / "r.json", "relation", related(), guesses(related(), 0.5, 2)),
        write_finetuned(here / "t.json", "typing", typed(), guesses(typed(), 0.5, 2)),
        write_lama(here / "l.json", {"P1": [1, 2]}),
    ]
    table = table_of(*files)
    prf = ["precision", "recall", "F1"]
    relation = [("Relation extraction", f"{kind} {name}") for kind in ("micro", "macro") for name in prf]
    glue = [(name, "accuracy") for name in ("MNLI (matched)", "MNLI (mismatched)", "QQP", "QNLI", "SST-2")]
    glue += [("CoLA", "Matthews"), ("STS-B", "Pearson"), ("MRPC", "accuracy"), ("RTE", "accuracy")]
    assert [(one.task, one.measure) for one in table.lines] == [
        *(("T-REx", "P@1"), ("UHN-T-REx", "P@1")),
        *(("Entity typing", f"micro {name}") for name in prf),
        *relation,
        *glue,
        ("average", "of nine numbers"),
    ]
    assert table.comparisons == 0  # one model
    everything = table_of(*files, everything=True)
    assert {(one.task, one.measure) for one in table.lines} < {(one.task, one.measure) for one in everything.lines}
    assert line(everything, "T-REx", "MRR over all facts").section == "LAMA"
    assert line(everything, "MRPC", "F1").section == "GLUE"
    assert line(everything, "STS-B", "spearman").cells[0].figure


def test_a_row_has_mean_spread_baseline_and_counts(here: Path) -> None:
    path = typing("a.json")
    found = line(table_of(path), "Entity typing", "micro F1")
    content = json.loads(path.read_text())
    assert found.cells[0].figure.std == content["scores"]["micro_f1"]["std"]
    assert found.baseline == content["baseline"]["test"]["micro_f1"]
    assert (found.examples, found.seeds) == ("60", "3")
    assert not found.cells[0].best  # of one


def test_the_best_of_a_row_and_ties(here: Path) -> None:
    table = table_of(typing("a.json", 0.2), typing("b.json", 0.9), f"c={typing('b.json', 0.9)}")
    cells = line(table, "Entity typing", "micro F1").cells
    assert [cell.best for cell in cells] == [False, True, True]


def test_a_clear_difference_is_marked_and_equal_models_are_not(here: Path) -> None:
    low, high = typing("low.json", 0.1), typing("high.json", 0.9)
    cells = line(table_of(low, high), "Entity typing", "micro F1").cells
    assert cells[0].comparison is None
    assert cells[1].comparison.mark == "better"
    assert cells[1].comparison.interval.difference == cells[1].figure.mean - cells[0].figure.mean
    assert cells[1].comparison.interval.low > 0
    assert (
        line(table_of(low, high, reference="high.json"), "Entity typing", "micro F1").cells[0].comparison.mark
        == "worse"
    )
    same = line(table_of(f"a={low}", f"b={low}"), "Entity typing", "micro F1").cells[1].comparison
    assert (same.interval.difference, same.interval.p, same.mark) == (0, 1, "")


def test_p_is_corrected_for_all_comparisons_of_the_page(here: Path) -> None:
    low, high = typing("low.json", 0.1), typing("high.json", 0.9)
    table = table_of(low, high)
    assert table.comparisons == 3
    for one in table.lines:
        assert one.cells[1].comparison.corrected == pytest.approx(3 / 201)  # the smallest p of each, times three


def test_too_few_resamples_are_told(here: Path) -> None:
    files = [typing("low.json", 0.1), *(typing(f"{n}.json", 0.9, salt=n) for n in range(4))]
    table = table_of(*files, resamples=200)
    assert any(
        "200 resamples cannot show a difference among 12 comparisons; take --resamples 239" in n for n in table.notes
    )
    assert not any(cell.comparison.significant for one in table.lines for cell in one.cells[1:])
    assert all(one.cells[1].comparison.significant for one in table_of(*files, resamples=239).lines)


def test_the_same_numbers_whatever_else_is_on_the_page(here: Path) -> None:
    first, second, third = (typing(f"{n}.json", 0.4 + n / 10) for n in range(3))
    relation = [
        write_finetuned(here / f"r{n}.json", "relation", related(), guesses(related(), 0.5, 2, n), model=f"{n}.json")
        for n in range(2)
    ]
    alone = line(table_of(first, third), "Entity typing", "micro F1").cells[1].comparison.interval
    among = line(table_of(first, second, third, *relation), "Entity typing", "micro F1").cells[2].comparison.interval
    assert among == alone
    assert line(table_of(first, third, seed=2), "Entity typing", "micro F1").cells[1].comparison.interval != alone


def test_a_single_seed_has_no_significance(here: Path) -> None:
    table = table_of(typing("a.json", 0.1, seeds=1), typing("b.json", 0.9, seeds=3))
    cells = line(table, "Entity typing", "micro F1").cells
    assert cells[1].comparison is None
    assert cells[1].best
    assert any(
        "b.json on Entity typing: not compared with a.json: a.json has a single seed" in note for note in table.notes
    )


def test_without_predictions_there_is_no_significance(here: Path) -> None:
    first, second = typing("a.json", 0.1), typing("b.json", 0.9)
    Path("b.predictions.jsonl.gz").unlink()
    table = table_of(first, second)
    assert table.comparisons == 0
    assert line(table, "Entity typing", "micro F1").cells[1].best
    assert table.notes == ["b.json on Entity typing: not compared with a.json: no predictions beside b.json"]


def test_predictions_of_another_evaluation_are_noticed(here: Path) -> None:
    first, second = typing("a.json", 0.1), typing("b.json", 0.9)
    typing("other.json", 0.5)
    Path("b.predictions.jsonl.gz").write_bytes(Path("other.predictions.jsonl.gz").read_bytes())
    table = table_of(first, second)
    assert table.comparisons == 0
    assert "b.predictions.jsonl.gz does not give the figures of b.json; evaluate again" in table.notes[0]


def test_other_data_is_not_compared(here: Path) -> None:
    table = table_of(typing("a.json", 0.1), typing("b.json", 0.9, n=50), typing("c.json", 0.2))
    found = line(table, "Entity typing", "micro F1")
    assert [cell.other_data for cell in found.cells] == [False, True, False]
    assert [cell.best for cell in found.cells] == [False, False, True]
    assert found.examples == "60 / 50"
    reason = "other data (examples of test: 50, the reference's 60)"
    assert f"b.json on Entity typing: not compared with a.json: {reason}" in table.notes


def test_as_many_examples_with_other_labels_are_other_data(here: Path) -> None:
    """The same number of each label, so that only the predictions show it."""
    gold = classified()
    write_glue(Path("a.json"), {"rte": {"dev": (gold, guesses(gold, 0.5, 2))}}, model="a")
    write_glue(Path("b.json"), {"rte": {"dev": (gold[::-1], guesses(gold[::-1], 0.5, 2))}}, model="b")
    table = table_of("a.json", "b.json")
    assert line(table, "RTE", "accuracy").cells[1].other_data
    assert "other data (the true labels differ at example" in table.notes[0]


def test_the_label_that_is_no_relation_is_part_of_the_data(here: Path) -> None:
    gold = related()
    for name, negative in (("a", "founder"), ("b", "founder"), ("c", None), ("d", "no_relation")):
        path = Path(f"{name}.json")
        write_finetuned(path, "relation", gold, guesses(gold, 0.5, 2, name), model=name, negative=negative)
        assert negative is None or negative in RELATIONS
    assert table_of("a.json", "b.json").comparisons == 6
    for other in ("c.json", "d.json"):
        table = table_of("a.json", other)
        assert table.comparisons == 0
        assert line(table, "Relation extraction", "micro F1").cells[1].other_data
        assert "the reference's founder" in table.notes[0]


def ranks(share: float, relations: int = 5, n: int = 40) -> dict[str, list[int]]:
    draw = random.Random(share)
    return {
        f"P{of}": [1 if draw.random() < share else draw.randint(2, 99) for _ in range(n)] for of in range(relations)
    }


def test_lama_is_compared_without_seeds(here: Path) -> None:
    write_lama(Path("a.json"), ranks(0.2), model="a")
    write_lama(Path("b.json"), ranks(0.6), model="b")
    found = line(table_of("a.json", "b.json"), "T-REx", "P@1")
    assert found.seeds == "-"
    assert found.cells[1].figure.std is None
    assert found.cells[1].comparison.mark == "better"
    interval = found.cells[1].comparison.interval
    # The variance of a share within each of five relations of 40 facts; the two models answer independently.
    variance = sum(
        share * (1 - share) / 40 / 25
        for of in (ranks(0.2), ranks(0.6))
        for share in (sum(rank == 1 for rank in facts) / 40 for facts in of.values())
    )
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * variance**0.5, rel=0.15)


def test_lama_of_other_facts_or_candidates_is_not_compared(here: Path) -> None:
    write_lama(Path("a.json"), ranks(0.2), model="a")
    write_lama(Path("b.json"), ranks(0.2, n=30), model="b")
    write_lama(Path("c.json"), ranks(0.2), model="c", tokens=51)
    table = table_of("a.json", "b.json", "c.json")
    assert table.comparisons == 0
    assert "facts: 150, the reference's 200); evaluate both with --common-with" in table.notes[0]
    assert "candidates: 51, the reference's 50); evaluate both with --common-with" in "".join(table.notes)


def test_the_average_is_of_what_all_have(here: Path) -> None:
    gold = classified()
    for name, tasks in (("a", ("rte", "cola", "qqp")), ("b", ("rte", "cola"))):
        write_glue(
            Path(f"{name}.json"), {t: {"dev": (gold, guesses(gold, 0.6, 2, name + t))} for t in tasks}, model=name
        )
    table = table_of("a.json", "b.json")
    average = line(table, "average", "of 2 of the nine numbers")
    rte, cola = line(table, "RTE", "accuracy"), line(table, "CoLA", "Matthews")
    for number in range(2):
        values = zip(rte.cells[number].figure.values, cola.cells[number].figure.values, strict=True)
        assert average.cells[number].figure.values == pytest.approx([(a + b) / 2 for a, b in values])
    both = [one.cells[1].comparison.interval.difference for one in (rte, cola)]
    assert average.cells[1].comparison.interval.difference == pytest.approx(sum(both) / 2)
    assert "GLUE average: without QQP, which not all models have" in table.notes
    assert "QQP: not compared, since" not in "".join(table.notes)  # the reference has it, the other does not


def test_tasks_in_files_of_their_own_make_an_average(here: Path) -> None:
    gold = classified()
    for task, seeds in (("rte", 2), ("cola", 3)):
        write_glue(Path(f"{task}.json"), {task: {"dev": (gold, guesses(gold, 0.6, seeds))}}, model="a")
    table = table_of("rte.json", "cola.json")
    assert line(table, "average", "of 2 of the nine numbers").cells[0].figure.std is None
    assert any("other numbers of seeds" in note for note in table.notes)


def test_a_reference_without_the_task(here: Path) -> None:
    write_lama(Path("a.json"), ranks(0.2), model="a")
    table = table_of("a.json", typing("b.json"), typing("c.json"))
    assert table.comparisons == 0
    assert "Entity typing: not compared, since a has no such result" in table.notes


def test_fewer_seeds_show_less(here: Path) -> None:
    """The same spread of the seeds, once from two of them and once from six."""
    widths = []
    for seeds in (2, 6):
        low, high = (typing(f"{share}-{seeds}.json", share, seeds, n=600) for share in (0.5, 0.6))
        interval = line(table_of(low, high), "Entity typing", "micro F1").cells[1].comparison.interval
        widths.append(interval.high - interval.low)
    assert widths[0] > widths[1]


def test_a_reference_that_is_no_model(here: Path) -> None:
    with pytest.raises(UserError, match=r"--reference: 'x' is none of the models: a\.json"):
        table_of(typing("a.json"), reference="x")


def test_a_result_that_was_changed_is_not_compared(here: Path) -> None:
    first, second = typing("a.json", 0.1), typing("b.json", 0.9)
    content = json.loads(second.read_text())
    content["splits"]["test"]["micro_f1"]["values"][0] = 0.99
    change(second, splits=content["splits"])
    assert table_of(first, second).comparisons == 0
