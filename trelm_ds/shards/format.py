"""The content of one webdataset sample, a block of sequences as three arrays and a JSON, and its tar encoding.

Samples are blocks of sequences because a tar member per sentence would cost more than the sentence itself.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from trelm_ds.errors import UserError

_TAR_BLOCK = 512
_NPY_HEADER = re.compile(rb"\{'descr': '(<[ui][248])', 'fortran_order': False, 'shape': \((\d+),(?: (\d+))?\), \}\s*\Z")


class Sequence(NamedTuple):
    """One training sequence.

    Attributes:
        tokens: uint32 [T], special tokens included.
        mentions: int64 [M, 3]: first token, last token + 1, QID number; in order, not overlapping.
    """

    tokens: np.ndarray
    mentions: np.ndarray


class Block(NamedTuple):
    """B consecutive sequences with T tokens and M mentions in total.

    Attributes:
        tokens: uint16 (uint32 for a vocabulary over 65,536) [T].
        lengths: int32 [B], tokens of each sequence.
        mentions: int32 [M, 4]: sequence within the block, first token, last token + 1, QID number.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    mentions: np.ndarray

    @classmethod
    def from_sequences(cls, sequences: list[Sequence], vocab_size: int) -> Block:
        """Pack sequences into a block; the size of the vocabulary determines the dtype of its tokens."""
        lengths = np.array([len(sequence.tokens) for sequence in sequences], dtype=np.int32)
        owner = np.repeat(np.arange(len(sequences)), [len(sequence.mentions) for sequence in sequences])
        none = np.zeros((0, 3), dtype=np.int64)
        mentions = np.concatenate([none, *(sequence.mentions for sequence in sequences)])
        tokens = np.concatenate([np.zeros(0, dtype=np.uint32), *(sequence.tokens for sequence in sequences)])
        return cls(
            tokens.astype(np.uint16 if vocab_size <= 1 << 16 else np.uint32),
            lengths,
            np.column_stack([owner, mentions]).astype(np.int32),
        )

    @classmethod
    def join(cls, blocks: list[Block]) -> Block:
        """Concatenate blocks."""
        bases = np.cumsum([0, *(len(block.lengths) for block in blocks[:-1])])
        mentions = [
            block.mentions + np.array([base, 0, 0, 0], dtype=np.int32)
            for block, base in zip(blocks, bases, strict=True)
        ]
        tokens, lengths = ([getattr(block, name) for block in blocks] for name in ("tokens", "lengths"))
        return cls(np.concatenate(tokens), np.concatenate(lengths), np.concatenate(mentions))

    def part(self, first: int, last: int) -> Block:
        """Return the sequences [first, last) as a block."""
        begin, end = int(self.lengths[:first].sum()), int(self.lengths[:last].sum())
        low, high = np.searchsorted(self.mentions[:, 0], [first, last])
        mentions = self.mentions[low:high] - np.array([first, 0, 0, 0], dtype=np.int32)
        return Block(self.tokens[begin:end], self.lengths[first:last], mentions)

    def to_tar(self, key: str) -> bytes:
        """Encode the tar members `key.{tokens,lengths,mentions}.npy` and `key.json`, byte for byte reproducible."""
        from webdataset import TarWriter

        about = {"sequences": len(self.lengths), "tokens": len(self.tokens)}
        sample = {"__key__": key, "json": about} | {f"{name}.npy": array for name, array in self._asdict().items()}
        buffer = io.BytesIO()
        with TarWriter(buffer, user="trelm", group="trelm", mtime=0) as writer:  # fixed, so that bytes are reproducible
            writer.write(sample)
            end = writer.tarstream.offset
        return buffer.getvalue()[:end]  # without the end-of-archive zeros, because blocks are concatenated

    @classmethod
    def from_tar(cls, data: bytes, place: str, vocab_size: int) -> Block:
        """Decode what `to_tar` encoded, of a vocabulary of that size.

        Raises:
            UserError: the bytes are not such a block; names `place`.
        """
        try:
            arrays = {name.split(".")[-2]: _array(content) for name, content in _members(data) if name.endswith(".npy")}
            block = cls(**arrays)
        except (TypeError, ValueError, IndexError) as error:
            raise UserError(f"{place}: damaged block ({error}); run `trelm verify` on the dataset") from None
        if problem := block._problem(vocab_size):
            raise UserError(f"{place}: damaged block ({problem}); run `trelm verify` on the dataset")
        return block

    def _problem(self, vocab_size: int) -> str | None:
        """Say what makes this no block of sequences; None if nothing does."""
        tokens, lengths, mentions = self
        if tokens.ndim != 1 or lengths.ndim != 1 or mentions.ndim != 2 or mentions.shape[1] != 4:
            return "an array has another shape"
        if (lengths < 1).any() or lengths.sum() != len(tokens):
            return "lengths and tokens disagree"
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
            return "a token is none of the vocabulary"
        owners, first, last, _ = mentions.T
        if len(mentions) and not (owners[0] >= 0 and owners[-1] < len(lengths) and (np.diff(owners) >= 0).all()):
            return "a mention is of no sequence"
        if not ((first >= 0) & (first < last) & (last <= lengths[owners])).all():
            return "a mention lies outside its sequence"
        return None


def _members(data: bytes) -> Iterator[tuple[str, memoryview]]:
    """Yield name and content of the regular files in tar bytes.

    Hand-written because for single blocks tarfile takes twenty times as long.
    """
    offset, view = 0, memoryview(data)
    while offset < len(data):
        header = data[offset : offset + _TAR_BLOCK]
        if len(header) < _TAR_BLOCK or header[257:262] != b"ustar" or header[156:157] not in (b"0", b"\0"):
            raise ValueError(f"no plain tar member at byte {offset}")
        size = int(header[124:136].rstrip(b"\0 "), 8)
        start = offset + _TAR_BLOCK
        if start + size > len(data):
            raise ValueError(f"a tar member at byte {offset} is cut off")
        yield header[:100].rstrip(b"\0").decode(), view[start : start + size]
        offset = start + -(-size // _TAR_BLOCK) * _TAR_BLOCK


def _array(content: memoryview) -> np.ndarray:
    """Decode a .npy file of integers with one or two dimensions; anything else is refused, in particular pickles."""
    length = int.from_bytes(content[8:10], "little")
    match = _NPY_HEADER.match(bytes(content[10 : 10 + length]))
    if bytes(content[:8]) != b"\x93NUMPY\x01\x00" or not match:
        raise ValueError("a member is not a .npy file of integers")
    kind, rows, columns = match.groups()
    shape = (int(rows),) if columns is None else (int(rows), int(columns))
    array = np.frombuffer(content[10 + length :], dtype=np.dtype(kind.decode()))
    return array.reshape(shape)
