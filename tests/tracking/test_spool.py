"""The file of what MLflow is to hear: kills, full disks, continuations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from trelm_ds.files import append_line
from trelm_ds.run_folder import SPOOL
from trelm_ds.tracking.spool import Spool, copied_from, read_spool

PARAMS, TAGS = {"optimizer.lr": "0.1", "world_size": "2"}, {"commit": "abc"}


def contents(run: Path, kind: str = "") -> list[dict[str, Any]]:
    return [entry.content for entry in read_spool(run / SPOOL) if kind in ("", entry.kind)]


def begin(run: Path, step: int = 0, **changes: str) -> Spool:
    spool = Spool(run)
    spool.begin(step, "trelm", "run", PARAMS | changes, TAGS)
    return spool


def test_entries_come_back_in_order_with_their_bytes(tmp_path: Path) -> None:
    spool = begin(tmp_path)
    spool.file("config.yaml")
    assert spool.metrics(10, {"loss": 2.5, "nothing": float("nan"), "much": float("inf")})
    spool.status("FINISHED")
    entries = list(read_spool(tmp_path / SPOOL))
    assert [entry.kind for entry in entries] == ["run", "file", "metrics", "status"]
    assert entries[0].content["params"] == PARAMS
    assert entries[0].content["tags"] == TAGS
    assert repr(entries[2].content["metrics"]) == "{'loss': 2.5, 'nothing': nan, 'much': inf}"
    assert [entry.start for entry in entries] == [0, *(entry.end for entry in entries[:-1])]
    assert list(read_spool(tmp_path / SPOOL, entries[1].end)) == entries[2:]


def test_a_line_that_a_kill_cut_short_is_dropped_and_nothing_else(tmp_path: Path) -> None:
    begin(tmp_path).metrics(10, {"loss": 1.0})
    whole = (tmp_path / SPOOL).read_bytes()
    line = json.dumps({"kind": "metrics", "step": 20, "time": 0, "metrics": {}})
    for cut in range(1, len(line)):
        (tmp_path / SPOOL).write_bytes(whole + line[:cut].encode())
        assert [entry["step"] for entry in contents(tmp_path, "metrics")] == [10]
        Spool(tmp_path)
        assert (tmp_path / SPOOL).read_bytes() == whole
    spool = begin(tmp_path, step=10)
    spool.metrics(20, {"loss": 0.5})
    assert [entry["step"] for entry in contents(tmp_path, "metrics")] == [10, 20]


def test_a_damaged_line_costs_only_itself(tmp_path: Path) -> None:
    spool = begin(tmp_path)
    for step in (10, 20, 30):
        spool.metrics(step, {"loss": 1.0})
    lines = (tmp_path / SPOOL).read_bytes().splitlines(keepends=True)
    lines[2] = b"\0" * (len(lines[2]) - 1) + b"\n"  # a power cut
    lines[1:1] = [b'"text"\n', b"[1]\n", b"{}\n", b'{"kind": "later"}\n', b"\xff\n"]
    (tmp_path / SPOOL).write_bytes(b"".join(lines))
    assert [entry["step"] for entry in contents(tmp_path, "metrics")] == [10, 30]


def test_steps_that_are_recorded_are_not_recorded_again(tmp_path: Path) -> None:
    spool = begin(tmp_path)
    for step in (10, 20, 30):
        assert spool.metrics(step, {"loss": float(step)})
    again = begin(tmp_path, step=15)  # of a checkpoint at 15
    assert [step for step in (20, 30, 40) if again.metrics(step, {"loss": -1.0})] == [40]
    assert [entry["metrics"]["loss"] for entry in contents(tmp_path, "metrics")] == [10, 20, 30, -1]


def test_a_continuation_is_the_same_run_and_its_changes_are_tags(tmp_path: Path) -> None:
    begin(tmp_path).metrics(10, {"loss": 1.0})
    begin(tmp_path, step=10)
    begin(tmp_path, step=10, world_size="4")
    begin(tmp_path, step=10, world_size="4")
    begin(tmp_path, step=10)  # and back
    assert [entry["kind"] for entry in contents(tmp_path)].count("run") == 1
    assert [entry["tags"] for entry in contents(tmp_path, "tags")] == [
        {"continued.world_size": "4"},
        {"continued.world_size": "2"},
    ]
    assert [entry["status"] for entry in contents(tmp_path, "status")] == ["RUNNING"] * 4


def test_from_step_0_with_other_settings_it_is_another_run(tmp_path: Path) -> None:
    begin(tmp_path).metrics(5, {"loss": 9.0})
    begin(tmp_path)  # killed before its first checkpoint, started again
    spool = begin(tmp_path, **{"optimizer.lr": "0.01"})
    assert spool.metrics(5, {"loss": 8.0})
    first, second = contents(tmp_path, "run")
    assert first["key"] != second["key"]
    assert second["params"]["optimizer.lr"] == "0.01"
    kinds = [(entry["kind"], entry.get("status")) for entry in contents(tmp_path)]
    assert kinds[-3:] == [("status", "FAILED"), ("run", None), ("metrics", None)]


def test_a_line_is_added_whole_or_not_at_all(tmp_path: Path) -> None:
    """A real full disk is a file size limit here: the kernel writes a part, then refuses."""
    import multiprocessing

    path = tmp_path / "lines"
    append_line(path, "first")
    process = multiprocessing.get_context("spawn").Process(target=_write_beyond_a_limit, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert path.read_text() == "first\n"
    append_line(path, "second")
    assert path.read_text() == "first\nsecond\n"


def _write_beyond_a_limit(path: Path) -> None:
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
    for _ in range(2):
        with pytest.raises(OSError, match=r"No space|too large"):
            append_line(path, "x" * 100)


def test_a_spool_that_was_lost_goes_on_by_the_key_of_the_checkpoint(tmp_path: Path) -> None:
    spool = begin(tmp_path)
    spool.metrics(5, {"loss": 9.0})
    (tmp_path / SPOOL).unlink()
    again = Spool(tmp_path)
    again.begin(5, "experiment", "name", {}, {}, spool.key)
    assert again.key == spool.key
    again.begin(5, "experiment", "name", {}, {}, "of another")
    assert again.key == spool.key


def folders(place: Path, step: int) -> tuple[Path, Path]:
    """A run folder with log points at 10 and 20, and a copy of it that begins again at a step."""
    run, copy = place / "run", place / "copy"
    run.mkdir()
    spool = begin(run)
    spool.metrics(10, {"loss": 2.0})
    spool.metrics(20, {"loss": 1.0})
    spool.status("FINISHED")
    shutil.copytree(run, copy)
    begin(copy, step)
    return run, copy


def test_a_copy_has_the_points_up_to_its_checkpoint_under_a_key_of_its_own(tmp_path: Path) -> None:
    run, copy = folders(tmp_path, step=15)
    assert [(entry["kind"], entry.get("step")) for entry in contents(copy)] == [
        ("run", None),
        ("metrics", 10),
        ("status", None),
    ]
    (original,), (own,) = contents(run, "run"), contents(copy, "run")
    assert own["key"] != original["key"]
    assert own["params"] == original["params"]
    assert own["tags"] == TAGS | {"trelm.copied_from": str(run), "trelm.copied_from_key": original["key"]}
    assert copied_from(copy) is None
    shutil.copytree(copy, tmp_path / "third")
    assert copied_from(tmp_path / "third") == copy


def test_a_copy_without_a_checkpoint_starts_over(tmp_path: Path) -> None:
    run, copy = folders(tmp_path, step=0)
    (own,) = contents(copy)
    assert own["tags"]["trelm.copied_from"] == str(run)
    assert own["key"] != contents(run, "run")[0]["key"]


def test_a_copy_whose_original_is_gone_was_moved(tmp_path: Path) -> None:
    run, copy = tmp_path / "run", tmp_path / "copy"
    run.mkdir()
    begin(run)
    shutil.copytree(run, copy)
    assert copied_from(copy) == run
    assert copied_from(run) is None
    (run / SPOOL).unlink()
    assert copied_from(copy) is None
    begin(run)  # another run
    assert copied_from(copy) is None
    shutil.rmtree(run)
    run.symlink_to(copy)  # another name of the same folder
    assert copied_from(copy) is None
