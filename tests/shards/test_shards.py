"""Shards: plain webdataset reads them, any sequence is found by its id, and verify finds every kind of damage."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trelm_ds.errors import UserError
from trelm_ds.shards import Block, Manifest, Sequence, ShardReader, ShardWriter, verify
from trelm_ds.shards.reader import DamagedBlockError


def random_sequences(count: int, vocab_size: int, seed: int = 0) -> list[Sequence]:
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        length = int(draw.integers(2, 40))
        spans = [(2 * n, 2 * n + 1, int(draw.integers(1, 1 << 30))) for n in range(int(draw.integers(0, length // 2)))]
        tokens = draw.integers(0, vocab_size, length).astype(np.uint32)
        made.append(Sequence(tokens, np.array(spans, dtype=np.int64).reshape(-1, 3)))
    return made


def write(folder: Path, sequences: list[Sequence], vocab_size: int, **sizes: int) -> Manifest:
    folder.mkdir()
    writer = ShardWriter(folder, vocab_size, **{"shard_bytes": 20_000, "block_sequences": 7} | sizes)
    for sequence in sequences:
        writer.add(sequence)
    tokenizer = {"sha256": "0", "vocab_size": vocab_size, "pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    manifest = Manifest(tokenizer, 64, {}, {}, writer.close())
    manifest.save(folder)
    return manifest


@pytest.mark.parametrize("vocab_size", [1000, 1 << 16, 250_000])
def test_every_sequence_is_read_back_by_its_id(tmp_path: Path, vocab_size: int) -> None:
    sequences = random_sequences(100, vocab_size)
    manifest = write(tmp_path / "ds", sequences, vocab_size)
    assert len(manifest.shards) > 1
    reader = ShardReader(tmp_path / "ds", cached_blocks=2)
    for number in np.random.default_rng(1).permutation(100):
        read = reader.sequence(int(number))
        np.testing.assert_array_equal(read.tokens, sequences[number].tokens)
        np.testing.assert_array_equal(read.mentions, sequences[number].mentions)


def test_plain_webdataset_reads_the_shards(tmp_path: Path) -> None:
    import webdataset as wds

    sequences = random_sequences(50, 1000)
    manifest = write(tmp_path / "ds", sequences, 1000)
    urls = [str(tmp_path / "ds" / shard.name) for shard in manifest.shards]
    tokens, lengths = [], []
    for sample in wds.WebDataset(urls, shardshuffle=False).decode():
        tokens.append(sample["tokens.npy"])
        lengths.append(sample["lengths.npy"])
        assert sample["json"]["sequences"] == len(sample["lengths.npy"])
    np.testing.assert_array_equal(np.concatenate(tokens), np.concatenate([s.tokens for s in sequences]))
    np.testing.assert_array_equal(np.concatenate(lengths), [len(s.tokens) for s in sequences])
    np.testing.assert_array_equal(np.load(tmp_path / "ds" / "lengths.npy"), np.concatenate(lengths))


def test_every_shard_is_a_whole_tar_file(tmp_path: Path) -> None:
    manifest = write(tmp_path / "ds", random_sequences(50, 1000), 1000)
    names = []
    for shard in manifest.shards:
        with tarfile.open(tmp_path / "ds" / shard.name) as archive:
            names += archive.getnames()
    assert len(names) == len(set(names)) == 4 * 8


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    sequences = random_sequences(20, 1000)
    same = [write(tmp_path / name, sequences, 1000).fingerprint for name in "ab"]
    other = write(tmp_path / "c", sequences[::-1], 1000).fingerprint
    assert same[0] == same[1] != other


def test_blocks_hold_no_pickle() -> None:
    import io

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        content = io.BytesIO()
        np.save(content, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        member = tarfile.TarInfo("0.tokens.npy")
        member.size = len(content.getvalue())
        archive.addfile(member, io.BytesIO(content.getvalue()))
    with pytest.raises(UserError, match="x: damaged block"):
        Block.from_tar(buffer.getvalue(), "x", 1000)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda b: b._replace(mentions=b.mentions[:, :3]), "an array has another shape"),
        (lambda b: b._replace(tokens=b.tokens + np.uint16(990)), "a token is none of the vocabulary"),
        (lambda b: b._replace(lengths=np.append(b.lengths, 0).astype(np.int32)), "lengths and tokens disagree"),
        (lambda b: b._replace(mentions=b.mentions + np.int32([0, -1, 0, 0])), "a mention lies outside its sequence"),
        (lambda b: b._replace(mentions=b.mentions + np.int32([0, 0, 99, 0])), "a mention lies outside its sequence"),
        (lambda b: b._replace(mentions=b.mentions * np.int32([1, 1, 0, 1])), "a mention lies outside its sequence"),
        (lambda b: b._replace(mentions=b.mentions + np.int32([9, 0, 0, 0])), "a mention is of no sequence"),
        (lambda b: b._replace(mentions=b.mentions[::-1].copy()), "a mention is of no sequence"),
    ],
)
def test_a_whole_block_that_is_no_block_of_sequences_is_refused(change: Callable[[Block], Block], problem: str) -> None:
    tokens = np.arange(5, 25, dtype=np.uint32)
    mentions = np.array([[0, 2, 7], [4, 5, 8]])
    block = Block.from_sequences([Sequence(tokens, mentions), Sequence(tokens, mentions)], 1000)
    assert Block.from_tar(block.to_tar("0"), "x", 1000).lengths.tolist() == [20, 20]
    with pytest.raises(UserError, match=rf"x: damaged block \({problem}\); run `trelm verify`"):
        Block.from_tar(change(block).to_tar("0"), "x", 1000)


def test_a_block_of_damaged_bytes_is_refused_or_read() -> None:
    """Where no checksum stands in between (`from_tar` alone), damage is one clear error, or changes numbers only."""
    block = Block.from_sequences(random_sequences(9, 1000), 1000)
    data = block.to_tar("0")
    for name, array in Block.from_tar(data, "x", 1000)._asdict().items():
        np.testing.assert_array_equal(array, getattr(block, name))
    messages = []
    for seed in range(400):
        draw = np.random.default_rng(seed)
        damaged = bytearray(data)
        for place in draw.integers(0, len(data), 1 + seed % 5):
            damaged[place] = draw.integers(256)
        try:
            Block.from_tar(bytes(damaged[: len(data) if seed % 3 else draw.integers(len(data))]), "x", 1000)
        except UserError as error:
            messages.append(str(error))
    assert 100 < len(messages) < 400
    assert all(message.startswith("x: damaged block") for message in messages)


def test_verify_names_what_is_wrong(tmp_path: Path) -> None:
    manifest = write(tmp_path / "ds", random_sequences(100, 1000), 1000)
    assert verify(tmp_path / "ds")[1] == []
    first, second = (tmp_path / "ds" / shard.name for shard in manifest.shards[:2])
    np.save(tmp_path / "ds" / "lengths.npy", np.zeros(100, dtype=np.int32))
    data = bytearray(first.read_bytes())
    data[700] ^= 1
    first.write_bytes(data)
    second.write_bytes(second.read_bytes()[:-1])
    shutil.copy(tmp_path / "ds" / manifest.shards[2].name, tmp_path / "ds" / "extra.tar")
    (tmp_path / "ds" / manifest.shards[2].name).unlink()
    found = verify(tmp_path / "ds")[1]
    assert [line.split(": ")[1].split(",")[0] for line in found] == [
        "its content does not match its sha256 in the manifest",
        f"{manifest.shards[1].bytes - 1} bytes",
        "missing",
        "its content does not match its sha256 in the manifest",
        "not in the manifest",
    ]
    with pytest.raises(UserError, match=r"lengths.npy: missing or damaged; run `trelm verify --repair"):
        ShardReader(tmp_path / "ds")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_what_may_not_be_read_is_a_mistake_and_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    write(tmp_path / "ds", random_sequences(20, 1000), 1000)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: fail())

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    if number == errno.EACCES:
        with pytest.raises(UserError, match=r"shard-000000.tar: cannot be read: Permission denied"):
            verify(tmp_path / "ds")
    else:
        found = verify(tmp_path / "ds")[1]
        assert found
        assert all("cannot be read: Input/output error" in line for line in found)


def test_a_shard_that_may_not_be_read_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted as damage, the advice would be to allow more of it."""
    write(tmp_path / "ds", random_sequences(20, 1000), 1000)

    def refuse(path: Path, *_: int) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("trelm_ds.shards.reader._read", refuse)
    reader = ShardReader(tmp_path / "ds")
    with pytest.raises(UserError, match=r"ds/shard-000000.tar: cannot be read: Permission denied") as raised:
        reader.load(0)
    assert not isinstance(raised.value, DamagedBlockError)
    assert not reader.damaged


def test_a_damaged_block_is_never_trained_on(tmp_path: Path) -> None:
    manifest = write(tmp_path / "ds", random_sequences(20, 1000), 1000)
    path = tmp_path / "ds" / manifest.shards[0].name
    data = bytearray(path.read_bytes())
    data[1200] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        UserError,
        match=r"shard-000000.tar at byte 0: damaged block \(its checksum does not match\); run `trelm verify`",
    ):
        ShardReader(tmp_path / "ds").sequence(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content | {"schema": 99}, "schema version 99"),
        (lambda content: content | {"max_length": 65}, "fingerprint does not match"),
        (lambda content: {name: content[name] for name in content if name != "shards"}, "damaged manifest"),
        (lambda content: [content], "schema version None"),
        (lambda content: content | {"shards": [content["shards"][0] | {"blocks": [[0, 1, 2, 3]]}]}, "fingerprint"),
        (lambda content: content | {"shards": [content["shards"][0] | {"name": "../x.tar"}]}, "a shard's name"),
    ],
)
def test_a_changed_manifest_is_refused(tmp_path: Path, change, message: str) -> None:
    write(tmp_path / "ds", random_sequences(10, 1000), 1000)
    path = tmp_path / "ds" / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=message):
        Manifest.load(tmp_path / "ds")


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no dataset"):
        Manifest.load(tmp_path)


def test_mentions_are_those_of_each_sample_in_its_place(tmp_path: Path) -> None:
    sequences = random_sequences(100, 1000)
    write(tmp_path / "ds", sequences, 1000)
    reader = ShardReader(tmp_path / "ds")
    ids = np.random.default_rng(3).integers(0, 100, 40)  # unordered, with repetitions
    mentions, blocks, places = reader.mentions(ids)
    assert (mentions.dtype, blocks.dtype, places.dtype) == (np.int32, np.int64, np.int64)
    expected = [(index, *row) for index, sample in enumerate(ids) for row in sequences[sample].mentions.tolist()]
    assert mentions.tolist() == [list(row) for row in expected]
    for (index, *span), block, place in zip(mentions.tolist(), blocks, places, strict=True):
        assert block == ids[index] // 7
        assert reader.load(int(block)).mentions[place].tolist() == [ids[index] % 7, *span]
    for none in (np.zeros(0, dtype=np.int64), ids[[not len(sequences[sample].mentions) for sample in ids]]):
        assert [array.shape for array in reader.mentions(none)] == [(0, 4), (0,), (0,)]
