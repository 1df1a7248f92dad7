"""Datasets behind a URL: fetched whole and checked, shards on demand, kept within the cache's size."""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.batches.numbered_dataset import write_numbered
from tests.forked import FORKED
from trelm_ds.errors import UserError
from trelm_ds.shards import Manifest, ShardReader, open_storage

N = 203


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_numbered(tmp_path / "source", N)
    return tmp_path / "source"


@pytest.fixture
def bucket(source: Path) -> Iterator[str]:
    """The dataset in fsspec's memory store, as an object store would have it."""
    import fsspec

    store, name = fsspec.filesystem("memory"), f"/bucket-{uuid.uuid4().hex}"
    store.put(str(source), name, recursive=True)
    yield f"memory:/{name}"
    store.rm(name, recursive=True)


def all_tokens(reader: ShardReader) -> np.ndarray:
    return np.concatenate(reader.tokens(np.arange(N)))


def test_the_same_samples_as_from_the_folder(source: Path, bucket: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    reader = ShardReader(open_storage(bucket, cache, 1.0))
    assert not list(cache.glob("*/*.tar"))
    np.testing.assert_array_equal(reader.lengths, np.load(source / "lengths.npy"))
    reader.tokens(np.arange(3))
    assert len(list(cache.glob("*/*.tar"))) == 1  # on demand
    np.testing.assert_array_equal(all_tokens(reader), all_tokens(ShardReader(source)))
    assert not list(cache.rglob("*.tmp"))


def test_what_is_in_the_cache_is_not_fetched_again(source: Path, tmp_path: Path) -> None:
    all_tokens(ShardReader(open_storage(source.as_uri(), tmp_path / "cache", 1.0)))
    for shard in source.glob("*.tar"):
        shard.unlink()
    assert len(all_tokens(ShardReader(open_storage(source.as_uri(), tmp_path / "cache", 1.0)))) > N


def test_the_shards_least_recently_read_make_room(source: Path, tmp_path: Path) -> None:
    shards = Manifest.load(source).shards
    room = (shards[0].bytes + max(shard.bytes for shard in shards)) / 1e9
    storage = open_storage(source.as_uri(), tmp_path / "cache", room)
    first, second, third = (shard.name for shard in shards[:3])
    past = [storage.shard(name) for name in (first, second)]
    for age, path in zip((20, 10), past, strict=True):
        os.utime(path, (path.stat().st_atime - age, path.stat().st_mtime - age))
    storage.shard(first)  # now the second has waited longest
    storage.shard(third)
    assert {path.name for path in (tmp_path / "cache").glob("*/*.tar")} == {first, third}
    np.testing.assert_array_equal(all_tokens(ShardReader(storage)), all_tokens(ShardReader(source)))


def test_a_damaged_copy_is_fetched_again(source: Path, tmp_path: Path) -> None:
    storage = open_storage(source.as_uri(), tmp_path / "cache", 1.0)
    path = storage.shard(Manifest.load(source).shards[0].name)
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    reader = ShardReader(storage)
    np.testing.assert_array_equal(all_tokens(reader), all_tokens(ShardReader(source)))
    assert not reader.damaged


def test_damage_in_the_store_never_reaches_the_cache(source: Path, tmp_path: Path) -> None:
    storage = open_storage(source.as_uri(), tmp_path / "cache", 1.0)
    shard = source / Manifest.load(source).shards[0].name
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"shard-000000.tar.*content does not match the manifest"):
        ShardReader(storage).tokens(np.arange(1))
    assert not list((tmp_path / "cache").glob("*/*.tar"))
    shutil.copy(source / "manifest.json", source / "lengths.npy")
    with pytest.raises(UserError, match=r"lengths.npy: its content does not match the manifest"):
        open_storage(source.as_uri(), tmp_path / "another", 1.0)


def _read_all(url: str, cache: Path) -> int:
    return len(all_tokens(ShardReader(open_storage(url, cache, 0.0001))))  # too small: they evict each other's shards


def test_processes_share_a_cache(source: Path, tmp_path: Path) -> None:
    with FORKED.Pool(3) as pool:
        counts = pool.starmap(_read_all, [(source.as_uri(), tmp_path / "cache")] * 3)
    assert set(counts) == {len(all_tokens(ShardReader(source)))}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nothing-here", r"memory://nothing-here is no dataset: it has no manifest.json"),
        ("file:///nowhere", r"file:///nowhere is no dataset"),
        ("nosuch://bucket", r"cannot open nosuch://bucket: Protocol not known: nosuch"),
    ],
)
def test_a_wrong_url_is_one_line(url: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        open_storage(url, tmp_path / "cache", 1.0)
    assert "\n" not in str(error.value)


def test_a_missing_backend_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"cannot open s3://bucket/ds: .*[Ii]nstall s3fs"):
        open_storage("s3://bucket/ds", tmp_path / "cache", 1.0)
