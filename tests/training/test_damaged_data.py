"""Runs on a dataset with damaged blocks: replaced and written down, within what the settings allow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.distributed import run_distributed_test
from tests.logged import warns
from tests.training.test_pretrain import config, fails, losses, train
from trelm_ds.config import Config
from trelm_ds.distributed import Ranks, connect, disconnect
from trelm_ds.run_folder import read_metrics
from trelm_ds.shards import Manifest, SampleOrder, ShardReader


def damage(dataset: Path, copy: Path) -> Path:
    """A copy of the dataset whose second block (of two) is damaged."""
    shutil.copytree(dataset, copy)
    (shard,) = Manifest.load(copy).shards
    data = bytearray((copy / shard.name).read_bytes())
    data[shard.blocks[1][0] + 600] ^= 1
    (copy / shard.name).write_bytes(data)
    return copy


def test_damaged_samples_are_replaced_and_written_down(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    data = damage(tiny_dataset, tmp_path / "data")
    tolerant = config()
    tolerant.loader.max_corrupted = 0.5
    with warns("shard-000000.tar: damaged block at byte"):
        train(tolerant, data, tmp_path / "run", one_rank)
    points = read_metrics(tmp_path / "run")
    lost = 144 / 400  # of 400 sequences the second block holds 144
    assert sum(point["corrupted_samples"] for point in points) == pytest.approx(4 * 32 * lost, rel=0.4)
    assert all(np.isfinite(point["loss"]) for point in points)
    (line,) = (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()
    noted = json.loads(line)
    assert (noted["shard"], noted["sequences"], noted["step"]) == ("shard-000000.tar", 144, 0)
    assert noted["reason"] == "its checksum does not match"

    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "quarantine.jsonl").symlink_to("/dev/full")
    with warns(r"quarantine\.jsonl: cannot be written: No space left on device"):
        train(tolerant, data, tmp_path / "second", one_rank)
    assert losses(tmp_path / "second") == losses(tmp_path / "run")  # the same substitutes


def test_more_damage_than_allowed_ends_the_run(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    data = damage(tiny_dataset, tmp_path / "data")
    message = fails(config(), data, tmp_path / "run", one_rank)
    assert f"{data}/shard-000000.tar: damaged at byte" in message
    assert "hold 144 of 400 samples" in message
    assert f"trelm verify --repair {data}" in message


def test_two_ranks_count_damage_together(tiny_dataset: Path, tmp_path: Path) -> None:
    data = damage(tiny_dataset, tmp_path / "data")
    settings = config()
    settings.loader.max_corrupted, settings.loader.workers = 0.5, 1
    run_distributed_test(train_on_ranks, 2, settings, data, tmp_path / "run")
    counted = [point["corrupted_samples"] for point in read_metrics(tmp_path / "run")]
    order = SampleOrder(ShardReader(data).block_sizes, settings.loader.seed, settings.loader.window_blocks)
    assert counted == [(order.samples(step * 32, 32)[1] >= 256).sum() for step in range(4)]
    assert len((tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()) == 1


def train_on_ranks(config: Config, data: Path, run: Path) -> None:
    ranks = connect()
    try:
        train(config, data, run, ranks)
    finally:
        disconnect()


def test_drop_needs_a_whole_batch(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    large = config(global_batch_size=512)
    large.loader.tail = "drop"
    message = fails(large, tiny_dataset, tmp_path / "run", one_rank)
    assert 'loader.tail: "drop" leaves nothing of 400 sequences' in message
