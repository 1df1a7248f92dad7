from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.tiny_tasks import write_glue
from trelm_ds.errors import UserError
from trelm_ds.evaluation.tasks import GLUE_TASKS, Kind, glue_tasks, read_glue

# As GLUE publishes them: the header (CoLA has none) and one line, with the texts and the label that it has.
PUBLISHED = {
    "SST-2": ("sentence\tlabel", "a fine film \t1", ("a fine film ",), "1"),
    "QQP": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "0\t1\t2\tWhy?\tHow?\t0", ("Why?", "How?"), "0"),
    "QNLI": ("index\tquestion\tsentence\tlabel", "0\tWhy?\tSo.\tnot_entailment", ("Why?", "So."), "not_entailment"),
    "RTE": ("index\tsentence1\tsentence2\tlabel", "0\tA.\tB.\tentailment", ("A.", "B."), "entailment"),
}


def write(folder: Path, name: str, *lines: str) -> Path:
    for split in ("train", "dev"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / f"{split}.tsv").write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_all_that_a_folder_has(tmp_path: Path) -> None:
    folder = write_glue(tmp_path / "glue")
    assert glue_tasks(folder) == ["cola", "mrpc", "sts-b", "mnli"]
    assert glue_tasks(folder, ["mnli", "cola"]) == ["mnli", "cola"]


def test_cola_has_no_header(tmp_path: Path) -> None:
    task = read_glue(write_glue(tmp_path / "glue"), "cola")
    assert len(task.train) == 24
    assert (task.train[0].texts, task.train[0].target) == (("the film is bad .",), "0")
    assert task.metric == "matthews"
    assert task.baseline("dev") == {"matthews": 0, "accuracy": 0.5}


def test_mrpc_has_a_byte_order_mark_and_quotes_that_mean_nothing(tmp_path: Path) -> None:
    task = read_glue(write_glue(tmp_path / "glue"), "mrpc")
    assert len(task.train) == 24
    assert task.train[0].texts == ('"Anna lives in Paris.', "the film is bad .")
    assert list(task.score(["1", "0"], ["1", "1"])) == ["accuracy", "f1"]


def test_sts_b_is_a_number(tmp_path: Path) -> None:
    task = read_glue(write_glue(tmp_path / "glue"), "sts-b")
    assert task.kind is Kind.REGRESSION
    assert [example.target for example in task.train[:2]] == [0.0, 5.0]
    assert task.baseline("dev") == {"pearson": 0, "spearman": 0}


def test_mnli_has_two_dev_splits_and_reads_labels_by_name(tmp_path: Path) -> None:
    task = read_glue(write_glue(tmp_path / "glue"), "mnli")
    assert task.labels == ("contradiction", "entailment", "neutral")
    assert list(task.evaluated) == ["dev", "dev_mismatched"]
    assert [example.target for example in task.train[:3]] == ["neutral", "entailment", "contradiction"]
    assert task.train[1].texts == ("Anna works at the bank.", "Anna works at the bank.")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_layouts_of_the_others(name: str, tmp_path: Path) -> None:
    header, line, texts, label = PUBLISHED[name]
    other = next(of for of in GLUE_TASKS[name.lower()].labels if of != label)
    task = read_glue(write(tmp_path, name, header, line, line.replace(label, other)), name.lower())
    assert task.train[0].texts == texts
    assert [example.target for example in task.train] == [label, other]


def test_case_of_folders_and_tasks(tmp_path: Path) -> None:
    write(tmp_path, "cola", "a\t1\t\tGood.", "a\t0\t*\tBad.")
    assert glue_tasks(tmp_path) == ["cola"]


def test_lines_of_qqp_with_columns_missing_are_counted(tmp_path: Path) -> None:
    header, line, *_ = PUBLISHED["QQP"]
    task = read_glue(write(tmp_path, "QQP", header, line, "0\t1\t2\tWhy", line.replace("\t0", "\t1")), "qqp")
    assert task.notes == {"lines of QQP with columns missing": 2}
    assert len(task.train) == 2


def test_an_empty_question_of_qqp_stays(tmp_path: Path) -> None:
    """As published, two pairs of its training split have no second question."""
    header, line, *_ = PUBLISHED["QQP"]
    task = read_glue(write(tmp_path, "QQP", header, line, "3\t5\t6\tHow do I begin?\t\t1"), "qqp")
    assert (task.train[1].texts, task.notes) == (("How do I begin?", ""), {})


def test_the_shared_data(shared_data: Path) -> None:
    sizes = {"cola": (8551, 1043), "mrpc": (3668, 408)}
    assert glue_tasks(shared_data / "glue") == list(sizes)
    for name, (train, dev) in sizes.items():
        task = read_glue(shared_data / "glue", name)
        assert (len(task.train), len(task.evaluated["dev"])) == (train, dev)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0\tA.\tB.\tmaybe", "RTE/train.tsv:3: the label 'maybe' is none of entailment, not_entailment"),
        ("0\tA.", "RTE/train.tsv:3: has 2 columns, needs 4"),
        ("0\t\t \tentailment", "RTE/train.tsv:3: the text is empty"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    header, good, *_ = PUBLISHED["RTE"]
    with pytest.raises(UserError, match=message):
        read_glue(write(tmp_path, "RTE", header, good, line), "rte")


@pytest.mark.parametrize("score", ["high", "nan", "inf", ""])
def test_a_score_that_is_no_number(score: str, tmp_path: Path) -> None:
    folder = write_glue(tmp_path / "glue")
    path = folder / "STS-B" / "dev.tsv"
    path.write_text(path.read_text().replace("5.000", score))
    with pytest.raises(UserError, match=f"STS-B/dev.tsv:3: the score must be a number, got '{score}'"):
        read_glue(folder, "sts-b")


def test_what_is_missing(tmp_path: Path) -> None:
    header, line, *_ = PUBLISHED["RTE"]
    with pytest.raises(UserError, match="nowhere is not a folder; give GLUE's folder"):
        glue_tasks(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has none of CoLA, SST-2"):
        glue_tasks(tmp_path)
    write(tmp_path, "RTE", header)
    with pytest.raises(UserError, match="--tasks: 'wnli' is none of cola,"):
        glue_tasks(tmp_path, ["rte", "wnli"])
    with pytest.raises(UserError, match="has no MNLI/"):
        glue_tasks(tmp_path, ["mnli"])
    with pytest.raises(UserError, match=r"RTE/train.tsv: holds no example"):
        read_glue(tmp_path, "rte")
    write(tmp_path, "RTE")
    with pytest.raises(UserError, match=r"RTE/train.tsv:1: has no column 'sentence1'"):
        read_glue(tmp_path, "rte")
    write(tmp_path, "RTE", header.replace("label", "gold"), line)
    with pytest.raises(UserError, match=r"RTE/train.tsv:1: has no column 'label'; fetch the file as GLUE publishes it"):
        read_glue(tmp_path, "rte")
    (tmp_path / "RTE" / "dev.tsv").unlink()
    write(tmp_path, "RTE", header, line)
    (tmp_path / "RTE" / "dev.tsv").unlink()
    with pytest.raises(UserError, match=r"RTE has no dev.tsv"):
        read_glue(tmp_path, "rte")
