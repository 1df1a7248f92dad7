"""Checkpoints in real runs: written beside training, committed or not there, kept, pruned; and what a disk can do."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from tests.logged import warns
from tests.training import test_pretrain as plain
from tests.training.test_knowledge import config as knowledge_config
from tests.training.test_pretrain import config, fails, losses, train
from trelm_ds.checkpoints import manifest as manifests
from trelm_ds.checkpoints import pending_save
from trelm_ds.checkpoints import saver as saving
from trelm_ds.checkpoints.listing import _describe, list_checkpoints, prune_run, to_table
from trelm_ds.checkpoints.manifest import last_good, read_verified
from trelm_ds.checkpoints.pending_save import tensors_of
from trelm_ds.config import Config, RoutingConfig
from trelm_ds.distributed import Ranks
from trelm_ds.errors import UserError
from trelm_ds.files import lock
from trelm_ds.run_folder import committed
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run

finished, run = plain.finished, plain.run  # fixtures: a finished run of 4 steps with checkpoints at 2 and 4


def whole(**trainer: Any) -> Config:
    """With bank, vectors and paths in the checkpoint."""
    settings = knowledge_config(**trainer)
    settings.routing = RoutingConfig(density=0.25, refresh_every=1, sample_fraction=1.0)
    return settings


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_beside_training_and_before_it_are_the_same(
    stage: int, one_rank: Ranks, tiny_dataset: Path, tmp_path: Path
) -> None:
    for beside in (True, False):
        settings = whole(stage=stage, async_checkpoints=beside)
        train(settings, tiny_dataset, tmp_path / str(beside), one_rank)
    for one, other in zip(committed(tmp_path / "True"), committed(tmp_path / "False"), strict=True):
        ours, theirs = read_verified(one).files, read_verified(other).files
        assert ours.keys() == theirs.keys()
        for name in ours:
            if name.endswith("optim_states.pt") and stage == 3:  # DeepSpeed numbers a process's parameters through
                tensors = (tensors_of(torch.load(at / name, weights_only=False)) for at in (one, other))
                assert all(torch.equal(*pair) for pair in zip(*tensors, strict=True))
            else:
                assert ours[name] == theirs[name]
    names = {Path(name).parts[0] for name in ours}
    assert {"tokenizer", "knowledge", "routing"} <= names
    assert "zero_to_fp32.py" not in names


def test_a_save_is_of_its_step_whatever_training_does_meanwhile(
    one_rank: Ranks, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are written as late as they may be: when the next step has its gradients and is about to use them."""
    train(whole(async_checkpoints=False), tiny_dataset, tmp_path / "plain", one_rank)

    class Late(Thread):
        def start(self) -> None:
            pass

        def join(self, timeout: float | None = None) -> None:
            super().start()
            super().join(timeout)

    monkeypatch.setattr(pending_save, "Thread", Late)
    train(whole(), tiny_dataset, tmp_path / "late", one_rank)
    late, usual = ([read_verified(path).files for path in committed(tmp_path / name)] for name in ("late", "plain"))
    assert late == usual


def test_which_stay(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    settings = config(max_steps=8, checkpoint_every=1, keep_checkpoints=2, keep_every=3)
    train(settings, tiny_dataset, tmp_path / "run", one_rank)
    assert [path.name for path in committed(tmp_path / "run")] == [f"step-{step:08d}" for step in (8, 7, 6, 3)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB, where checkpoints of the plain tiny model have about 1 MB each."""
    place = tmp_path / "disk"
    place.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], check=False).returncode
    ):
        pytest.skip("mounting a small file system takes root")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("foreseen", [True, False])
def test_a_full_disk_costs_a_warning(
    foreseen: bool,
    one_rank: Ranks,
    tiny_dataset: Path,
    small_disk: Path,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not foreseen:
        monkeypatch.setattr(saving, "_FREE_SPACE_FACTOR", 0.0)  # so that the disk fills while files are written
    filler = small_disk / "filler"
    undisturbed, place = losses(run), small_disk / "run"
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    shutil.copytree(run, place)
    size = sum(path.stat().st_size for path in committed(place)[0].rglob("*") if path.is_file())
    free = shutil.disk_usage(small_disk).free
    filler.write_bytes(b"x" * (free - size // 2))
    reason = r"it takes \d MB, \d MB are free" if foreseen else "."
    with warns(f"checkpoint at step 4 not committed: {reason}"):
        message = fails(config(), tiny_dataset, place, one_rank)  # the last one, so the run ends with the reason
    assert "checkpoint at step 4 not committed" in message
    assert [path.name for path in committed(place)] == ["step-00000002"]
    assert not list((place / "checkpoints").glob(".step*"))  # what was written of it does not fill the disk
    filler.unlink()
    train(config(), tiny_dataset, place, one_rank)
    assert losses(place) == undisturbed


@pytest.fixture
def undisturbed(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> list[float]:
    train(config(), tiny_dataset, tmp_path / "undisturbed", one_rank)
    return losses(tmp_path / "undisturbed")


def test_training_goes_on_after_a_failed_save(
    one_rank: Ranks, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: list[float]
) -> None:
    real, calls = torch.save, []

    def fails_once(*arguments: Any, **more: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")
        real(*arguments, **more)

    monkeypatch.setattr(torch, "save", fails_once)
    with warns("step 2 not committed: PytorchStreamWriter failed.*training goes on"):
        train(config(), tiny_dataset, tmp_path / "run", one_rank)
    assert losses(tmp_path / "run") == undisturbed
    assert [path.name for path in committed(tmp_path / "run")] == ["step-00000004"]


def test_a_limit_on_the_size_of_files_is_named(
    one_rank: Ranks, tiny_dataset: Path, tmp_path: Path, undisturbed: list[float]
) -> None:
    """As `ulimit -f` sets it; torch's writer says only that a position is not the one it expects."""
    place, before = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # the tokenizer is smaller, the weights are not
    try:
        with warns("step 2 not committed: .*File too large.*training goes on"), contextlib.suppress(UserError):
            train(config(), tiny_dataset, place, one_rank)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert committed(place) == []
    train(config(), tiny_dataset, place, one_rank)
    assert losses(place) == undisturbed
    assert [path.name for path in committed(place)] == ["step-00000004", "step-00000002"]


def test_a_read_only_folder_costs_a_warning(one_rank: Ranks, tiny_dataset: Path, small_disk: Path) -> None:
    place = small_disk / "run"
    with StopSignals() as signals:
        trainer = build_run(config(), str(tiny_dataset), place, one_rank, signals)
        (place / "checkpoints").mkdir(parents=True)
        trainer.engine.train()
        trainer.train_step()
        subprocess.run(["mount", "--bind", place / "checkpoints", place / "checkpoints"], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", place / "checkpoints"], check=True)
        with warns("checkpoint at step 1 not committed: .*Read-only file system"):
            trainer.save()
        subprocess.run(["umount", place / "checkpoints"], check=True)
        trainer.train_step()
        trainer.save()
        trainer.saver.settle()
        trainer.reader.loader.close()
    assert [path.name for path in committed(place)] == ["step-00000002"]


def test_a_changed_byte_is_found_in_every_kind_of_file(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(whole(), tiny_dataset, run, one_rank)
    newest, before = committed(run)
    undisturbed = losses(run)
    for name in read_verified(newest).files:
        path = newest / name
        sound = path.read_bytes()
        damaged = bytearray(sound)
        damaged[len(damaged) // 2] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="does not match the checkpoint's manifest") as error:
            read_verified(newest)
        assert str(path) in str(error.value)
        path.write_bytes(sound)
    (newest / "routing" / "paths.safetensors").write_bytes(b"x")
    with warns(r"checkpoint passed over.*paths\.safetensors"):
        train(whole(), tiny_dataset, run, one_rank)
    assert losses(run) == undisturbed
    assert before in committed(run)


@pytest.mark.parametrize("content", ["", "{", '{"schema": 2}', '{"schema": 3}', "[]"])
def test_a_damaged_manifest_leaves_the_one_before(content: str, run: Path) -> None:
    newest, before = committed(run)
    (newest / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="manifest"):
        read_verified(newest)
    assert read_verified(before).step == 2
    found = list_checkpoints(run, verify=False)
    assert [bool(entry.problem) for entry in found] == [True, False]


@pytest.mark.parametrize(
    ("was", "becomes"), [('"step": 4', '"step": 3'), ('"zero_stage": 1', '"zero_stage": 3'), ('"guard"', '"gvard"')]
)
def test_a_manifest_vouches_for_itself(was: str, becomes: str, run: Path, one_rank: Ranks, tiny_dataset: Path) -> None:
    manifest = committed(run)[0] / "manifest.json"
    assert was in manifest.read_text()
    manifest.write_text(manifest.read_text().replace(was, becomes))
    undisturbed = losses(run)
    with warns(r"checkpoint passed over: .*manifest\.json: changed since it was written"):
        train(config(), tiny_dataset, run, one_rank)
    assert losses(run) == undisturbed


def test_a_folder_that_cannot_be_written_is_one_line(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "config.yaml").mkdir(parents=True)
    assert fails(config(), tiny_dataset, tmp_path / "run", one_rank).startswith("--out: cannot write into ")


def test_damaged_ones_do_not_take_the_place_of_sound_ones(run: Path, one_rank: Ranks, tiny_dataset: Path) -> None:
    """The run goes on from the one before, and commits one that is still older than the damaged one."""
    newest, before = committed(run)
    (newest / "mp_rank_00_model_states.pt").write_bytes(b"x")
    with warns("checkpoint passed over"):
        train(config(max_steps=3), tiny_dataset, run, one_rank)
    assert [path.name for path in committed(run)] == ["step-00000003", before.name]


def test_copies_beside_checkpoints_are_nobodys_business(run: Path, one_rank: Ranks, tiny_dataset: Path) -> None:
    newest, before = committed(run)
    copies = [newest.with_name(f"{newest.name}.bak"), newest.with_name("step-by-step")]
    for copy in copies:
        shutil.copytree(newest, copy)
    (copies[1] / "manifest.json").unlink()
    assert committed(run) == [newest, before]
    assert [entry.step for entry in list_checkpoints(run, verify=True)] == [4, 2]
    train(config(max_steps=6, checkpoint_every=1, keep_every=4), tiny_dataset, run, one_rank)
    assert [path.name for path in committed(run)] == [f"step-{step:08d}" for step in (6, 5, 4)]
    assert all(copy.is_dir() for copy in copies)


def test_the_folder_is_taken_before_its_checkpoints_are_looked_at(
    run: Path, one_rank: Ranks, tiny_dataset: Path
) -> None:
    with (
        lock(run / ".lock", "somebody else's"),
        StopSignals() as signals,
        pytest.raises(UserError, match=f"--out: {run} is in use by another process"),
    ):
        build_run(config(), str(tiny_dataset), run, one_rank, signals)


def test_listing(run: Path) -> None:
    found = list_checkpoints(run, verify=True)
    assert [(entry.step, entry.ranks, entry.zero_stage, entry.problem) for entry in found] == [
        (4, 1, 1, None),
        (2, 1, 1, None),
    ]
    lines = to_table(found, run, verified=True).splitlines()
    assert lines[0].split()[3:] == ["ranks", "per", "model", "ZeRO", "state"]
    assert lines[1].startswith("* ")
    assert lines[1].endswith("sound")
    weights = found[1].path / "mp_rank_00_model_states.pt"
    weights.write_bytes(weights.read_bytes()[:-1])
    problem = list_checkpoints(run, verify=True)[1].problem
    assert problem is not None
    assert "mp_rank_00_model_states.pt: its content does not match" in problem
    assert prune_run(run, 2) == [found[1].path]  # the damaged one
    found[0].path.joinpath("manifest.json").write_text("{}")
    with pytest.raises(UserError, match="no other is sound; nothing was removed"):
        prune_run(run, 2)
    shutil.rmtree(found[0].path)
    assert _describe(found[0].path, verify=True) is None  # removed while it was looked at
    with pytest.raises(UserError, match="at least 2 must stay"):
        prune_run(run, 1)
    with pytest.raises(UserError, match="no run folder"):
        list_checkpoints(run / "nowhere", verify=False)


@pytest.mark.parametrize(("said", "shared"), [({"tensor_parallel": 4}, 4), ({}, 1)])  # older versions do not say it
def test_listing_tells_how_many_ranks_shared_a_model(said: dict[str, int], shared: int, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-00000007"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"world_size": 8, "zero_stage": 1} | said))
    (found,) = list_checkpoints(tmp_path, verify=False)
    assert (found.ranks, found.tensor_parallel, found.zero_stage, found.problem) == (8, shared, 1, None)
    assert f" 8  {shared:>9}     1  not checked" in to_table([found], tmp_path, verified=False)


def test_pruning(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(config(checkpoint_every=1, keep_checkpoints=4), tiny_dataset, run, one_rank)
    assert [path.name for path in prune_run(run, 3)] == ["step-00000001"]
    assert [entry.step for entry in list_checkpoints(run, verify=True)] == [4, 3, 2]
    assert not (run / ".lock").exists()
    assert json.loads((run / "checkpoints" / "latest.json").read_text())["step"] == 4


def test_log_points_are_on_disk_before_the_checkpoint_behind_them(
    one_rank: Ranks, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of MLflow as well: what the spool has lost, no continuation sends again."""
    run, flushed = tmp_path / "run", list[tuple[str, int, int]]()

    def noted(path: Path) -> None:
        points = [line for line in path.read_text().splitlines() if '"loss"' in line]
        flushed.append((path.name, len(points), len(committed(run))))

    monkeypatch.setattr("trelm_ds.training.journal.fsync_path", noted)
    run.mkdir()
    (run / "mlflow_spool.jsonl").touch()  # of an earlier start; making a store takes ten seconds
    train(config(checkpoint_every=2), tiny_dataset, run, one_rank)
    points = [entry for entry in flushed if entry[0] == "metrics.jsonl"]
    assert points == [("metrics.jsonl", 2, 0), ("metrics.jsonl", 4, 1)]
    assert [entry[0] for entry in flushed] == ["metrics.jsonl", "mlflow_spool.jsonl"] * 2


def test_links_are_left_alone(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    """An old checkpoint that was moved to an archive and linked back keeps its files there."""
    run, archive = tmp_path / "run", tmp_path / "archive"
    train(config(checkpoint_every=1, keep_checkpoints=9), tiny_dataset, run, one_rank)
    first = run / "checkpoints" / "step-00000001"
    shutil.move(first, archive)
    first.symlink_to(archive)
    before = {path: path.read_bytes() for path in archive.rglob("*") if path.is_file()}
    assert [path.name for path in prune_run(run, 2)] == ["step-00000002"]
    train(config(max_steps=6, checkpoint_every=1, keep_checkpoints=2), tiny_dataset, run, one_rank)
    assert [entry.step for entry in list_checkpoints(run, verify=True)] == [6, 5, 1]
    assert first.is_symlink()
    assert {path: path.read_bytes() for path in archive.rglob("*") if path.is_file()} == before


def test_weights_that_are_not_finite_are_not_committed(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    with StopSignals() as signals:
        trainer = build_run(config(0), str(tiny_dataset), tmp_path / "run", one_rank, signals)
        trainer.engine.train()
        trainer.train_step()
        trainer.engine.module.head.norm.weight.data[0] = float("nan")
        trainer.save()
        with warns("mp_rank_00_model_states.pt: weights or moments are not finite"):
            trainer.saver.settle()
        trainer.reader.loader.close()
    assert not committed(tmp_path / "run")


@pytest.mark.parametrize(("number", "passes"), [(errno.EACCES, False), (errno.ESTALE, True), (errno.EIO, None)])
def test_what_cannot_be_read_now_is_not_passed_over(
    run: Path, monkeypatch: pytest.MonkeyPatch, number: int, passes: bool | None
) -> None:
    """Going on from an older checkpoint would remove the newest; only a disk that fails has damaged it."""
    newest, older = committed(run)[:2]
    read = manifests.sha256_of

    def fail(path: Path) -> str:
        if newest in path.parents:
            raise OSError(number, os.strerror(number), str(path))
        return read(path)

    monkeypatch.setattr(manifests, "sha256_of", fail)
    if passes is None:
        with warns("checkpoint passed over: .*Input/output error"):
            found = last_good(run)
        assert found is not None
        assert found[0] == older
        return
    for call in (lambda: last_good(run), lambda: prune_run(run, 2)):
        with pytest.raises(UserError, match=rf"cannot be read: {os.strerror(number)}") as error:
            call()
        assert error.value.passes is passes
    assert committed(run)[:2] == [newest, older]


def test_without_a_look_at_its_checkpoints_no_run_begins_anew(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look = Path.iterdir

    def fail(path: Path) -> Iterator[Path]:
        if path.name == "checkpoints":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return look(path)

    monkeypatch.setattr(Path, "iterdir", fail)
    with pytest.raises(PermissionError):
        last_good(run)
    with pytest.raises(PermissionError):
        list_checkpoints(run, verify=False)
