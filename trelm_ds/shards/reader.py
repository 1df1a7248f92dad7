"""Reads single sequences by their sample id."""

from __future__ import annotations

import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from trelm_ds.errors import UserError
from trelm_ds.shards.format import Block, Sequence
from trelm_ds.shards.manifest import Manifest


class ShardReader:
    """Random access to a dataset's sequences; decoded blocks are cached.

    Args:
        folder: the dataset.
        cached_blocks: decoded blocks held in memory; at least the order's window, or blocks are read again.

    Raises:
        UserError: a shard is missing or not as long as the manifest says.
    """

    def __init__(self, folder: Path, cached_blocks: int = 64) -> None:
        self.manifest = Manifest.load(folder)
        self._folder = folder
        for shard in self.manifest.shards:
            path = folder / shard.name
            size = path.stat().st_size if path.is_file() else None
            if size != shard.bytes:
                found = "is missing" if size is None else f"has {size} bytes"
                raise UserError(f"{path}: {found}, the manifest says {shard.bytes} bytes; run `trelm verify {folder}`")
        places = [(number, *block) for number, shard in enumerate(self.manifest.shards) for block in shard.blocks]
        self._places = np.array(places, dtype=np.int64).reshape(-1, 5)
        self.block_sizes = self._places[:, 3]
        self._first = np.concatenate([[0], np.cumsum(self.block_sizes)])
        self._load = lru_cache(maxsize=cached_blocks)(self._load_block)

    def sequence(self, sample_id: int) -> Sequence:
        """The sequence with this id, 0 <= id < number of sequences."""
        block = int(np.searchsorted(self._first, sample_id, side="right")) - 1
        content, starts = self._load(block)
        index = sample_id - int(self._first[block])
        first, last = np.searchsorted(content.mentions[:, 0], [index, index + 1])
        tokens = content.tokens[starts[index] : starts[index + 1]]
        return Sequence(tokens, content.mentions[first:last, 1:])

    def _load_block(self, block: int) -> tuple[Block, np.ndarray]:
        shard, offset, length, _, crc = self._places[block]
        path = self._folder / self.manifest.shards[shard].name
        with path.open("rb") as stream:
            stream.seek(int(offset))
            data = stream.read(int(length))
        if zlib.crc32(data) != crc:
            raise UserError(f"{path} at byte {offset}: damaged block; run `trelm verify` on the dataset")
        content = Block.from_tar(data, f"{path} at byte {offset}")
        return content, np.concatenate([[0], np.cumsum(content.lengths)])
