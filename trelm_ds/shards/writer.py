"""Writer of webdataset tar shards."""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path

import numpy as np

from trelm_ds.shards.format import Block, Sequence
from trelm_ds.shards.manifest import LENGTHS, ShardInfo

BLOCK_SEQUENCES = 256
_END_OF_ARCHIVE = bytes(1024)


class ShardWriter:
    """Groups sequences into blocks, and blocks into shards of about `shard_bytes`; also writes the list of lengths.

    Args:
        folder: existing folder, in which `shard-000000.tar` ... are written. The caller renames it when finished.
        vocab_size: determines the dtype of stored tokens.
        shard_bytes: a shard is closed once it reaches this size.
        block_sequences: sequences per block.
    """

    def __init__(self, folder: Path, vocab_size: int, shard_bytes: int, block_sequences: int = BLOCK_SEQUENCES) -> None:
        self.shards: list[ShardInfo] = []
        self._folder, self._vocab_size = folder, vocab_size
        self._shard_bytes, self._block_sequences = shard_bytes, block_sequences
        self._pending: list[Block] = []
        self._n_pending = 0
        self._blocks: list[tuple[Block, bytes]] = []
        self._lengths: list[np.ndarray] = []

    def add(self, sequence: Sequence) -> None:
        """Append one sequence."""
        self.extend(Block.from_sequences([sequence], self._vocab_size))

    def extend(self, block: Block) -> None:
        """Append any number of sequences; how they are grouped does not affect the blocks on disk."""
        first = 0
        while first < len(block.lengths):
            last = min(first + self._block_sequences - self._n_pending, len(block.lengths))
            self._pending.append(block.part(first, last))
            self._n_pending += last - first
            first = last
            if self._n_pending == self._block_sequences:
                self._close_block()

    def close(self) -> list[ShardInfo]:
        """Write what is pending, and `lengths.npy`; return the description of every shard."""
        if self._pending:
            self._close_block()
        if self._blocks:
            self._close_shard()
        np.save(self._folder / LENGTHS, np.concatenate([np.zeros(0, dtype=np.int32), *self._lengths]))
        return self.shards

    def _close_block(self) -> None:
        block = Block.join(self._pending)
        self._blocks.append((block, block.to_tar(f"{len(self._lengths):08d}")))
        self._lengths.append(block.lengths)
        self._pending, self._n_pending = [], 0
        if sum(len(data) for _, data in self._blocks) >= self._shard_bytes:
            self._close_shard()

    def _close_shard(self) -> None:
        name = f"shard-{len(self.shards):06d}.tar"
        places, offset = [], 0
        for block, data in self._blocks:
            places.append([offset, len(data), len(block.lengths), zlib.crc32(data)])
            offset += len(data)
        content = b"".join(data for _, data in self._blocks) + _END_OF_ARCHIVE
        with (self._folder / name).open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        blocks = [block for block, _ in self._blocks]
        self.shards.append(
            ShardInfo(
                name=name,
                bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
                sequences=sum(len(block.lengths) for block in blocks),
                tokens=sum(len(block.tokens) for block in blocks),
                mentions=sum(len(block.mentions) for block in blocks),
                blocks=places,
            )
        )
        self._blocks = []
