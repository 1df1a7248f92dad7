"""Repair: what is damaged goes, the rest stays, and a kill at any moment leaves a usable dataset."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.batches.numbered_dataset import FIRST, write_numbered
from trelm_ds.errors import UserError
from trelm_ds.shards import Block, Manifest, ShardReader, repair, verify

N = 203


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """The second block is damaged, the second shard missing, the last truncated, the list of lengths lost."""
    folder = tmp_path / "ds"
    write_numbered(folder, N)
    first, second, *_, last = Manifest.load(folder).shards
    flip(folder / first.name, first.blocks[1][0] + 700)
    (folder / second.name).unlink()
    os.truncate(folder / last.name, last.blocks[-1][0] + 100)
    (folder / "lengths.npy").unlink()
    return folder


def sample_ids(folder: Path) -> list[int]:
    reader = ShardReader(folder)
    return [int(tokens[1]) - FIRST for tokens in reader.tokens(np.arange(reader.manifest.n_sequences))]


def kept(folder: Path) -> list[int]:
    first, second, *_, last = Manifest.load(folder).shards
    gone = [range(7, 14), range(first.sequences, first.sequences + second.sequences), range(N - last.blocks[-1][2], N)]
    return [sample for sample in range(N) if not any(sample in part for part in gone)]


def test_the_sound_blocks_stay_in_order(damaged: Path) -> None:
    before, expected = Manifest.load(damaged), kept(damaged)
    done, beyond = repair(damaged)
    assert beyond == []
    shards = [shard.name for shard in before.shards]
    assert [line.split(":")[0] for line in done] == [shards[0], shards[1], shards[-1]]
    assert f"{shards[1]}: missing, {before.shards[1].sequences} sequences dropped" in done
    assert verify(damaged)[1] == []
    assert sample_ids(damaged) == expected
    manifest = Manifest.load(damaged)
    assert manifest.fingerprint != before.fingerprint
    assert manifest.counts["sequences dropped by repair"] == N - len(expected)
    assert {path.name for path in damaged.glob("*.tar")} == {shard.name for shard in manifest.shards}
    assert repair(damaged) == ([], [])
    assert Manifest.load(damaged).fingerprint == manifest.fingerprint


def test_a_sound_dataset_stays_as_it_is(tmp_path: Path) -> None:
    write_numbered(tmp_path / "ds", N)
    before = {path: path.read_bytes() for path in (tmp_path / "ds").rglob("*.*")}
    assert repair(tmp_path / "ds") == ([], [])
    assert {path: path.read_bytes() for path in (tmp_path / "ds").rglob("*.*")} == before


def test_what_cannot_be_repaired_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "ds"
    write_numbered(folder, 50)
    (folder / "graph").mkdir()
    np.save(folder / "graph" / "entities.npy", np.arange(9))
    Manifest.load(folder).save(folder)
    flip(folder / "graph" / "entities.npy", 140)
    flip(folder / "lengths.npy", 200)
    done, beyond = repair(folder)
    assert done == ["lengths.npy: rewritten"]
    assert len(beyond) == 1
    assert "entities.npy: missing or damaged, and nothing to repair it from" in beyond[0]
    for path in folder.glob("*.tar"):
        path.unlink()
    with pytest.raises(UserError, match="no block is intact"):
        repair(folder)


class Killed(BaseException):
    """Nothing catches it."""


def test_a_kill_at_any_moment_leaves_the_old_or_the_new(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = kept(damaged)
    np.save(damaged / "lengths.npy", _lengths(damaged))  # usable before, so usable at any time
    fingerprints = set()
    for moment in range(100):
        copy = Path(shutil.copytree(damaged, tmp_path / f"copy{moment}"))
        with monkeypatch.context() as patched:
            calls = [0]

            def dying(original, calls: list[int] = calls, moment: int = moment):  # type: ignore[no-untyped-def]
                def call(*arguments, **options):  # type: ignore[no-untyped-def]
                    if calls[0] == moment:
                        raise Killed
                    calls[0] += 1
                    return original(*arguments, **options)

                return call

            for name in ("replace", "unlink"):
                patched.setattr(Path, name, dying(getattr(Path, name)))
            patched.setattr(os, "fsync", dying(os.fsync))
            try:
                repair(copy)
                break
            except Killed:
                pass
        reader = ShardReader(copy)  # manifest and lengths belong together
        fingerprints.add(reader.manifest.fingerprint)
        readable = [i for i in range(reader.manifest.n_sequences) if _can_read(reader, i)]
        assert [int(reader.sequence(i).tokens[1]) - FIRST for i in readable] == expected
        repair(copy)
        assert verify(copy)[1] == []
        assert sample_ids(copy) == expected
    assert moment > 10
    assert len(fingerprints) == 2


def _can_read(reader: ShardReader, sample: int) -> bool:
    try:
        reader.sequence(sample)
    except UserError:
        return False
    return True


def _lengths(folder: Path) -> np.ndarray:
    """The list of lengths of the undamaged dataset."""
    twin = folder.with_name("twin")
    write_numbered(twin, N)
    assert Manifest.load(twin).fingerprint == Manifest.load(folder).fingerprint
    return np.load(twin / "lengths.npy")


@pytest.mark.parametrize(("number", "lost"), [(errno.EIO, 7), (errno.ESTALE, None), (errno.EACCES, None)])
def test_only_a_failing_disk_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, lost: int | None
) -> None:
    """What may pass, or another user may do, must not cost sound sequences."""
    folder = tmp_path / "ds"
    write_numbered(folder, N)
    read, failed = Block.from_tar, list[int]()

    def fail(data: bytes, where: str, vocab_size: int) -> Block:
        if not failed:
            failed.append(number)
            raise OSError(number, os.strerror(number))
        return read(data, where, vocab_size)

    before = Manifest.load(folder).fingerprint
    monkeypatch.setattr(Block, "from_tar", staticmethod(fail))
    if lost is not None:
        assert repair(folder)[1] == []
        assert Manifest.load(folder).n_sequences == N - lost
        return
    with pytest.raises(UserError, match="cannot be repaired"):
        repair(folder)
    assert Manifest.load(folder).fingerprint == before
    assert verify(folder)[1] == []
