"""slurm/prepare.sh on a real Slurm: parts that are killed, and the merge that sees to them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.conftest import write_corpus
from tests.corpus.test_restart import content, write_dump
from tests.slurm.local_cluster import Cluster, processes_of, until
from tests.slurm.small_run import left_by_an_allocation
from trelm_ds.corpus import PrepareOptions, prepare

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SCRIPT = Path("slurm/prepare.sh")
CHUNK_MB = 0.002


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, documents=1)  # for its graph
    write_dump(folder / "wiki")
    return folder


@pytest.fixture(scope="module")
def whole(corpus: Path) -> dict[str, bytes]:
    """The files of the dataset that an undisturbed `trelm prepare` makes."""
    out = corpus / "whole"
    graph = corpus / "wikidata5m"
    prepare(PrepareOptions(corpus / "wiki" / "plain", graph, "train", out, 32, 300, min_words=4, chunk_mb=CHUNK_MB))
    return content(out)


def command(corpus: Path, out: Path, source: str = "wiki/plain") -> list[str | Path]:
    """The script with its options, all but the number of parts."""
    sizes = ["--max-length", "32", "--vocab-size", "300", "--min-words", "4", "--chunk-mb", str(CHUNK_MB)]
    inputs = ["--source", corpus / source, "--wikidata5m", corpus / "wikidata5m", "--tokenizer", "train"]
    return [SCRIPT, *inputs, *sizes, "--out", out]


def submit(cluster: Cluster, logs: Path, *arguments: str | Path, **variables: str) -> str:
    return cluster.submit("--cpus-per-task=1", "-o", logs / "%x-%A_%a.log", *arguments, **variables)


def jobs_named(cluster: Cluster, name: str) -> dict[str, str]:
    """Number -> state, of jobs in the queue and ended ones; those that another job had made needless are left out."""
    listed = cluster.run("squeue", "-h", "-t", "all", "--name", name, "-o", "%F %T").stdout.split()
    states = dict(zip(listed[::2], listed[1::2], strict=True))
    return {number: state for number, state in states.items() if state != "CANCELLED"}


def merge_of(cluster: Cluster, array: str) -> str:
    """The number of the array's merge job, once that is in the queue for good."""
    name = f"prepare-merge-{array}"
    until(lambda: bool(jobs_named(cluster, name)), f"the merge of array {array}")
    return min(jobs_named(cluster, name), key=int)


def kill_part(cluster: Cluster, part: str) -> None:
    """SIGKILL to the process that reads this part, once there is one."""

    def found() -> list[int]:
        commands = {pid: command.split() for pid, command in processes_of(cluster.root).items()}
        return [pid for pid, words in commands.items() if words[0].endswith("python") and part in words]

    until(lambda: bool(found()), f"the process of part {part}")
    for pid in found():
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("array", "site", "message"),
    [
        ([], {}, "submit it as an array, such as 'sbatch --array=1-8"),
        (["--array=2-2"], {}, "the array must be 1-N"),
        (["--array=1-5:4"], {}, "the array must be 1-N"),
        (["--array=3"], {"TRELM_PARTS": "2"}, "no part 3 of 2"),
        (["--array=1-1"], {"TRELM_PARTS": "two"}, "TRELM_PARTS must be a positive number"),
        (["--array=1-1"], {"TRELM_RETRIES": "-1"}, "TRELM_RETRIES must be a whole number"),
        (["--array=1-1"], {"TRELM_VENV": "nowhere"}, "no virtual environment at nowhere"),
        (["--array=1-1"], {"TRELM_HOME": "/usr"}, "no trelm_ds in /usr"),
    ],
)
def test_wrong_value_is_one_line(
    cluster: Cluster, tmp_path: Path, array: list[str], site: dict[str, str], message: str
) -> None:
    task = cluster.submit(*array, "-o", tmp_path / "%a", SCRIPT, **site)
    job = cluster.wait(task)
    until(lambda: all(log.read_text() for log in tmp_path.iterdir()), "the other tasks' lines")
    for log in tmp_path.iterdir():
        text = log.read_text()
        assert message in text
        assert text.startswith("prepare: ")
        assert text.count("\n") == 1, text
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "2:0")


def test_wrong_option_ends_all_before_anything_is_queued(cluster: Cluster, corpus: Path, tmp_path: Path) -> None:
    array = submit(cluster, tmp_path, "--array=1-2", *command(corpus, tmp_path / "ds", "nowhere"))
    for part in (1, 2):
        job = cluster.wait(f"{array}_{part}")
        assert (job["JobState"], job["ExitCode"]) == ("FAILED", "2:0")
        assert "trelm: error: --source: " in (tmp_path / f"prepare-{array}_{part}.log").read_text()
    assert not jobs_named(cluster, f"prepare-merge-{array}")


def test_eight_parts_two_of_them_killed(
    cluster: Cluster, corpus: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Part 1 is also requeued: it must not submit a second merge. All is submitted from within an interactive job."""
    out, given = tmp_path / "ds", left_by_an_allocation() | {"SBATCH_MEM_PER_CPU": "1500"}
    array = submit(cluster, tmp_path, "--array=1-8", "--hold", "--time=30", *command(corpus, out), **given)
    assert cluster.run("scontrol", "update", f"jobid={array}", "arraytaskthrottle=3").returncode == 0
    assert cluster.run("scontrol", "release", array).returncode == 0
    for part in ("2/8", "5/8"):
        kill_part(cluster, part)
    merge = merge_of(cluster, array)
    assert cluster.run("scontrol", "requeue", f"{array}_1").returncode == 0
    job = cluster.wait(merge)

    log = (tmp_path / f"prepare-merge-{array}.log").read_text()
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), log
    assert (job["TimeLimit"], job["CPUs/Task"], job["MinMemoryCPU"]) == ("00:30:00", "1", "1500M")  # as the array
    assert jobs_named(cluster, f"prepare-merge-{array}") == {merge: "COMPLETED"}
    (retry,) = jobs_named(cluster, f"prepare-retry-{merge}")
    assert f"parts 2,5 of 8 are missing: array {retry} tries again, 1 of 3" in log
    for part in (2, 5):
        assert f"part {part}/8 is done" in (tmp_path / f"prepare-retry-{merge}-{retry}_{part}.log").read_text()
    assert content(out) == whole
    assert not (tmp_path / ".ds.partial").exists()


def test_a_part_that_cannot_be_finished(cluster: Cluster, corpus: Path, tmp_path: Path) -> None:
    """The first task is killed before it could submit the merge, and what it should have read is damaged."""
    source = tmp_path / "dump.xml.bz2"
    data = bytearray((corpus / "wiki" / "multi" / "dump.xml.bz2").read_bytes())
    stream = data.index(b"BZh9", len(data) * 3 // 4)
    data[stream + 20 : stream + 60] = bytes(40)
    source.write_bytes(data)
    arguments = command(corpus, tmp_path / "ds", str(source))
    array = submit(cluster, tmp_path, "--array=1-2", "--hold", *arguments, TRELM_RETRIES="1")
    assert cluster.run("scancel", f"{array}_1").returncode == 0
    assert cluster.run("scontrol", "release", array).returncode == 0
    merge = merge_of(cluster, array)
    job = cluster.wait(merge)

    log = (tmp_path / f"prepare-merge-{array}.log").read_text()
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "2:0"), log
    assert log.splitlines()[-1].startswith("prepare: parts 1 of 2 are missing after 1 retries")
    assert jobs_named(cluster, f"prepare-merge-{array}") == {merge: "FAILED"}
    (retry,) = jobs_named(cluster, f"prepare-retry-{merge}")
    assert "damaged" in (tmp_path / f"prepare-retry-{merge}-{retry}_1.log").read_text()
    assert "part 2/2 is done" in (tmp_path / f"prepare-{array}_2.log").read_text()
    assert not (tmp_path / "ds").exists()
