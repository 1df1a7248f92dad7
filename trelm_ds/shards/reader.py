"""Random access to sequences by sample id."""

from __future__ import annotations

import io
import time
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trelm_ds.errors import UserError
from trelm_ds.files import load_array, sha256_of
from trelm_ds.ragged import spread
from trelm_ds.shards.format import Block, Sequence
from trelm_ds.shards.manifest import LENGTHS, LENGTHS_NEXT, Manifest
from trelm_ds.shards.storage import LocalFolder, Storage

TRIES = 3
_WAIT_S = 0.2  # before the second try, twice as long before the third


class Damage(NamedTuple):
    """A block that could not be read.

    Attributes:
        block: index of the block in the dataset.
        shard: file name of its shard.
        offset: offset of the block in the shard, in bytes.
        sequences: number of sequences in the block.
        reason: what went wrong, in words.
    """

    block: int
    shard: str
    offset: int
    sequences: int
    reason: str


class DamagedBlockError(UserError):
    """Raised when a block cannot be read; `damage` says which and why."""

    def __init__(self, damage: Damage, place: str) -> None:
        where = f"{place}/{damage.shard} at byte {damage.offset}"
        super().__init__(f"{where}: damaged block ({damage.reason}); run `trelm verify` on the dataset")
        self.damage = damage


class _Loaded(NamedTuple):
    """A decoded block; `starts` [B + 1] is a list, because looking up single numbers is faster than in an array."""

    tokens: np.ndarray
    mentions: np.ndarray
    starts: list[int]


class ShardReader:
    """Random access to a dataset's sequences; decoded blocks are cached.

    Args:
        storage: the dataset's storage or its folder.
        cached_blocks: number of decoded blocks kept in memory; with less than the order's window, blocks are read
            repeatedly.

    Raises:
        UserError: there is no dataset, or its list of lengths is damaged.
    """

    def __init__(self, storage: Storage | Path, cached_blocks: int = 64) -> None:
        self.storage: Storage = LocalFolder(storage) if isinstance(storage, Path) else storage
        self.manifest = Manifest.load(self.storage.folder)
        self._cached_blocks = cached_blocks
        places = [(number, *block) for number, shard in enumerate(self.manifest.shards) for block in shard.blocks]
        self._places = np.array(places, dtype=np.int64).reshape(-1, 5)
        self.block_sizes = self._places[:, 3]
        self._first = np.concatenate([[0], np.cumsum(self.block_sizes)])
        self.lengths = load_lengths(self.storage.folder, self.manifest)
        self._load = lru_cache(maxsize=cached_blocks)(self._load_block)
        self.damaged: dict[int, DamagedBlockError] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardReader, (self.storage, self._cached_blocks)  # another process reopens it

    def blocks_of(self, sample_ids: np.ndarray) -> np.ndarray:
        """Return the block of each sample, int64 [n]."""
        return np.searchsorted(self._first, sample_ids, side="right") - 1

    def sequence(self, sample_id: int) -> Sequence:
        """Read the sequence with this id, 0 <= id < number of sequences.

        Raises:
            DamagedBlockError: its block cannot be read.
        """
        block = int(self.blocks_of(np.array(sample_id)))
        content = self.load(block)
        index = sample_id - int(self._first[block])
        first, last = np.searchsorted(content.mentions[:, 0], [index, index + 1])
        tokens = content.tokens[content.starts[index] : content.starts[index + 1]]
        return Sequence(tokens, content.mentions[first:last, 1:])

    def tokens(self, sample_ids: np.ndarray) -> list[np.ndarray]:
        """Read the tokens of each sample, uint16 or uint32 [T].

        Raises:
            DamagedBlockError: a block cannot be read.
        """
        blocks = self.blocks_of(sample_ids)
        found = []
        for block, index in zip(blocks.tolist(), (sample_ids - self._first[blocks]).tolist(), strict=True):
            content = self.load(block)
            found.append(content.tokens[content.starts[index] : content.starts[index + 1]])
        return found

    def mentions(self, sample_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read the mentions of the samples, int64 [n], in the order of samples and within each by position.

        Returns:
            mentions int32 [M, 4]: index into `sample_ids`, first token, last token + 1, QID number; the block of each
            mention, int64 [M]; and its index among that block's mentions, int64 [M].

        Raises:
            DamagedBlockError: a block cannot be read.
        """
        blocks = self.blocks_of(sample_ids)
        within = (sample_ids - self._first[blocks]).astype(np.int32)
        by_block = np.argsort(blocks, kind="stable")
        places = [np.zeros(0, dtype=np.int64)]
        found = [np.zeros((0, 4), dtype=np.int32)]
        for samples in np.split(by_block, np.flatnonzero(np.diff(blocks[by_block])) + 1) if len(blocks) else []:
            content = self.load(int(blocks[samples[0]])).mentions
            owner = np.ascontiguousarray(content[:, 0])
            first, last = (np.searchsorted(owner, within[samples], side=side) for side in ("left", "right"))
            places.append(spread(first, last - first))
            found.append(content[places[-1]])
            found[-1][:, 0] = np.repeat(samples, last - first)
        mentions = np.concatenate(found)
        order = np.argsort(mentions[:, 0], kind="stable")
        mentions = mentions[order]
        return mentions, blocks[mentions[:, 0]], np.concatenate(places)[order]

    def load(self, block: int) -> _Loaded:
        """Return a decoded block, from the cache if it is there.

        Raises:
            DamagedBlockError: the block could not be read in three tries; later calls fail immediately.
        """
        if block in self.damaged:
            raise self.damaged[block]
        return self._load(block)

    def _load_block(self, block: int) -> _Loaded:
        """Read and decode a block, with retries."""
        number, offset, length, sequences, crc = self._places[block].tolist()
        name = self.manifest.shards[number].name
        reason = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(_WAIT_S * attempt)  # a file server may be restarting
            try:
                data = _read(self.storage.shard(name), offset, length)
                if zlib.crc32(data) == crc:
                    return self._decode(block, data)
                reason = "its checksum does not match"
                self.storage.discard(name)
            except UserError as error:
                reason = str(error)
                break
            except PermissionError as error:  # no damage, and another block of the shard is no better
                raise UserError(f"{self.storage.place}/{name}: cannot be read: {error.strerror}") from None
            except OSError as error:
                reason = error.strerror or str(error)
                if isinstance(error, FileNotFoundError) and isinstance(self.storage, LocalFolder):
                    break  # no other copy to wait for
        damage = Damage(block, name, offset, sequences, reason)
        self.damaged[block] = DamagedBlockError(damage, self.storage.place)
        raise self.damaged[block]

    def _decode(self, block: int, data: bytes) -> _Loaded:
        content = Block.from_tar(data, "block", self.manifest.vocab_size)
        expected = self.lengths[self._first[block] : self._first[block + 1]]
        if not np.array_equal(content.lengths, expected):
            raise UserError(f"its sequences are not as long as {LENGTHS} says")
        return _Loaded(content.tokens, content.mentions, np.concatenate([[0], np.cumsum(content.lengths)]).tolist())


def load_lengths(folder: Path, manifest: Manifest) -> np.ndarray:
    """Memory-map the number of tokens of each sequence by sample id, int32 [N].

    Ranks divide their work by it, so it must be the same on all of them: its hash is checked.

    Raises:
        UserError: the file is missing or damaged.
    """
    expected = manifest.files.get(LENGTHS, {}).get("sha256")
    # The second name remains if a repair is killed between writing the manifest and its last rename.
    for path in (folder / LENGTHS, folder / LENGTHS_NEXT):
        if path.is_file() and sha256_of(path) == expected:
            lengths = load_array(path)
            if lengths.shape == (manifest.n_sequences,):
                return lengths
    raise UserError(f"{folder / LENGTHS}: missing or damaged; run `trelm verify --repair {folder}`")


def _read(path: Path, offset: int, length: int) -> bytes:
    with io.FileIO(path) as stream:
        stream.seek(offset)
        return stream.read(length) or b""
