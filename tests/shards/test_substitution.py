"""Damaged blocks: the same substitutes everywhere, never longer than the original, and a budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.batches.numbered_dataset import sequences, step_dataset, write_numbered
from trelm_ds.batches import Step
from trelm_ds.errors import UserError
from trelm_ds.shards import Manifest, ShardReader, Substitution

N = 203


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """29 blocks of 7 samples: the second is damaged, and all of the second shard."""
    folder = tmp_path / "ds"
    write_numbered(folder, N)
    first, second, *_ = Manifest.load(folder).shards
    data = bytearray((folder / first.name).read_bytes())
    data[first.blocks[1][0] + 700] ^= 1
    (folder / first.name).write_bytes(data)
    (folder / second.name).unlink()
    return folder


def lost(folder: Path) -> set[int]:
    first, second, *_ = Manifest.load(folder).shards
    return set(range(7, 14)) | set(range(first.sequences, first.sequences + second.sequences))


def test_substitutes_are_readable_fit_and_repeat(dataset: Path) -> None:
    reader = ShardReader(dataset)
    ids, gone = np.arange(N), lost(dataset)
    epochs = np.zeros(N, dtype=np.int64)
    found = Substitution(reader, 5, 1.0).readable(epochs, ids)
    assert set(np.flatnonzero(found != ids)) == gone
    assert not gone & set(found.tolist())
    assert (reader.lengths[found] <= reader.lengths[ids]).all()
    reader.tokens(found)

    backwards = Substitution(ShardReader(dataset), 5, 1.0).readable(epochs, ids[::-1].copy())
    np.testing.assert_array_equal(backwards[::-1], found)
    for other in (
        Substitution(reader, 6, 1.0).readable(epochs, ids),
        Substitution(reader, 5, 1.0).readable(epochs + 1, ids),
    ):
        assert (other != found).sum() > len(gone) // 2


def test_batches_keep_within_the_budget_of_tokens_and_count(dataset: Path) -> None:
    gone = lost(dataset)
    damaged = [step_dataset(dataset, rank, 2, max_corrupted=1.0) for rank in range(2)]
    for step in range(13):
        parts = [one[step] for one in damaged]
        assert all(isinstance(part, Step) for part in parts)
        order_ids = damaged[0].order.samples(step * 16, 16)[1]
        assert sum(part.counts["corrupted"] for part in parts) == len(gone & set(order_ids.tolist()))
        rows = [row for part in parts for row in sequences(part.micro_batches)]
        assert {row[0] for row in rows} >= set(order_ids.tolist()) - gone
        assert all(len(batch.input_ids) <= 120 for part in parts for batch in part.micro_batches)
    reported = {damage.block for one in damaged for damage in one.substitution.damages}
    assert len(reported) == len(gone) / 7


def test_the_budget_is_a_share_of_the_samples(dataset: Path) -> None:
    gone, ids = lost(dataset), np.arange(N)
    Substitution(ShardReader(dataset), 0, len(gone) / N).readable(0 * ids, ids)
    with pytest.raises(
        UserError, match=rf"hold {len(gone)} of 203 samples .*, more than loader.max_corrupted .* allows"
    ):
        Substitution(ShardReader(dataset), 0, (len(gone) - 1) / N).readable(0 * ids, ids)


def test_nothing_left_to_read(tmp_path: Path) -> None:
    write_numbered(tmp_path / "ds", 20)
    for shard in Manifest.load(tmp_path / "ds").shards:
        (tmp_path / "ds" / shard.name).unlink()
    with pytest.raises(UserError, match="nothing to read in place of damaged samples"):
        Substitution(ShardReader(tmp_path / "ds"), 0, 1.0).readable(np.zeros(1, dtype=np.int64), np.arange(1))


def test_a_passing_error_is_tried_again(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, calls = ShardReader(dataset), []
    shard = reader.storage.shard

    def flaky(name: str) -> Path:
        calls.append(name)
        if len(calls) < 3:
            raise OSError(5, "Input/output error")
        return shard(name)

    monkeypatch.setattr(reader.storage, "shard", flaky)
    assert len(reader.tokens(np.arange(3))) == 3
    assert len(calls) == 3
    assert not reader.damaged
