"""`trelm verify --repair`: drop what is damaged from a dataset, so that the rest can be used."""

from __future__ import annotations

import errno
import hashlib
import os
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trelm_ds.errors import UserError
from trelm_ds.files import fsync_path, lock, sha256_of, write_atomically
from trelm_ds.progress import track
from trelm_ds.shards.format import Block
from trelm_ds.shards.manifest import CARD, DROPPED, LENGTHS, LENGTHS_NEXT, Manifest, ShardInfo

_END_OF_ARCHIVE = bytes(1024)


class _Kept(NamedTuple):
    """What is left of a shard: its description, None if nothing, and the tokens of its sequences, int32 [n]."""

    info: ShardInfo | None
    lengths: np.ndarray


def repair(folder: Path) -> tuple[list[str], list[str]]:
    """Drop damaged blocks and missing shards, and rewrite the list of lengths and the manifest.

    Shards that lose blocks are rewritten under new numbers, then the manifest is replaced, then the old shards are
    removed. If it is killed at any moment, the dataset is either unchanged or repaired, and repair can run again. The
    frequencies of tokens, words and entities still include what was dropped.

    Returns:
        one line for each thing that was dropped or rewritten, and one for each other damaged file, which only
        `trelm prepare` can make again.

    Raises:
        UserError: there is no dataset, its manifest is damaged, no block is intact, the folder cannot be written, or
            another repair is running.
    """
    Manifest.load(folder)  # fails if there is no dataset, before a lock file is created
    try:
        with lock(folder / ".repair.lock", f"{folder}: verify --repair"):
            return _repair(folder)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be repaired: {error.strerror or error}") from None


def _repair(folder: Path) -> tuple[list[str], list[str]]:
    """Do the work of `repair`, under its lock."""
    for path in folder.glob(".*.tmp"):
        path.unlink()  # a repair was killed while writing
    manifest = Manifest.load(folder)
    before = manifest.n_sequences
    current, pending = folder / LENGTHS, folder / LENGTHS_NEXT
    if pending.is_file() and sha256_of(pending) == manifest.files.get(LENGTHS, {}).get("sha256"):
        pending.replace(current)  # a repair was killed just before this step
    done: list[str] = []
    free = 1 + max([_number(path.name) for path in folder.glob("shard-??????.tar")], default=-1)
    free = max(free, 1 + max((_number(shard.name) for shard in manifest.shards), default=-1))
    kept: list[_Kept] = []
    for shard in track(manifest.shards, "checking shards", total=len(manifest.shards)):
        kept.append(_repair_shard(folder / shard.name, shard, f"shard-{free:06d}.tar", manifest.vocab_size, done))
        free += kept[-1].info is not None and kept[-1].info.name != shard.name
    manifest.shards = [item.info for item in kept if item.info is not None]
    if not manifest.shards:
        raise UserError(f"{folder}: no block is intact; run `trelm prepare` again")
    if manifest.n_sequences != before:
        manifest.counts[DROPPED] = manifest.counts.get(DROPPED, 0) + before - manifest.n_sequences
    _replace_lengths(folder, manifest, np.concatenate([item.lengths for item in kept]), done)
    for path in folder.glob("shard-??????.tar"):  # replaced above, or left behind by a repair that was killed
        if path.name not in {shard.name for shard in manifest.shards}:
            path.unlink()
            if path.name not in {line.split(":")[0] for line in done}:
                done.append(f"{path.name}: removed, not in the manifest")
    fsync_path(folder)
    card = folder / CARD
    if manifest.n_sequences != before and card.is_file():
        now = f"{before - manifest.n_sequences:,} sequences were dropped, {manifest.n_sequences:,} are left"
        text = card.read_text(encoding="utf-8", errors="replace").rstrip()
        write_atomically(card, f"{text}\n\n**Repaired since: {now}. Figures and plots above are from before.**\n")
    return done, _damaged_others(folder, manifest)


def _number(name: str) -> int:
    """Parse the number of a shard from its file name; -1 if it has none."""
    digits = name[len("shard-") : -len(".tar")]
    return int(digits) if digits.isdigit() else -1


def _repair_shard(path: Path, shard: ShardInfo, new_name: str, vocab_size: int, done: list[str]) -> _Kept:
    """Keep the intact blocks of a shard, in a new file if any others had to be dropped."""
    if not path.is_file():
        done.append(f"{shard.name}: missing, {shard.sequences} sequences dropped")
        return _Kept(None, np.zeros(0, dtype=np.int32))
    intact: list[tuple[Block, bytes, int]] = []
    problems = []
    with path.open("rb") as stream:
        for offset, length, sequences, crc in shard.blocks:
            try:
                stream.seek(offset)
                data = stream.read(length)
                if zlib.crc32(data) != crc:
                    raise UserError("its checksum does not match")
                block = Block.from_tar(data, "block", vocab_size)
                if len(block.lengths) != sequences:
                    raise UserError(f"{len(block.lengths)} sequences, the manifest says {sequences}")
                intact.append((block, data, crc))
            except (UserError, OSError) as error:
                # A failing disk (EIO) is damage too; a file server that restarts, or a missing right, passes.
                if isinstance(error, OSError) and error.errno != errno.EIO:
                    raise
                problems.append(f"{shard.name}: block at byte {offset} dropped, {sequences} sequences ({error})")
    done += problems
    lengths = np.concatenate([np.zeros(0, dtype=np.int32), *(block.lengths for block, _, _ in intact)])
    if not intact:
        return _Kept(None, lengths)
    if not problems and path.stat().st_size == shard.bytes and sha256_of(path) == shard.sha256:
        return _Kept(shard, lengths)
    if not problems:
        done.append(f"{shard.name}: damaged outside of its blocks, rewritten")
    return _Kept(_write(path.with_name(new_name), intact), lengths)


def _write(path: Path, blocks: list[tuple[Block, bytes, int]]) -> ShardInfo:
    """Write a shard from encoded blocks: (block, its tar bytes, their crc32) each."""
    content = b"".join(data for _, data, _ in blocks) + _END_OF_ARCHIVE
    write_atomically(path, content)
    ends = np.cumsum([len(data) for _, data, _ in blocks]).tolist()
    places = [
        [end - len(data), len(data), len(block.lengths), crc]
        for (block, data, crc), end in zip(blocks, ends, strict=True)
    ]
    return ShardInfo(
        name=path.name,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        sequences=sum(len(block.lengths) for block, _, _ in blocks),
        tokens=sum(len(block.tokens) for block, _, _ in blocks),
        mentions=sum(len(block.mentions) for block, _, _ in blocks),
        blocks=places,
    )


def _replace_lengths(folder: Path, manifest: Manifest, lengths: np.ndarray, done: list[str]) -> None:
    """Write the list of lengths and the manifest, which must change together.

    The new list first gets a second name, under which readers of the new manifest find it, and is renamed once the
    manifest is in place.
    """
    pending = folder / LENGTHS_NEXT
    temporary = folder / f".{LENGTHS}.tmp"
    with temporary.open("wb") as stream:
        np.save(stream, lengths.astype(np.int32))
        stream.flush()
        os.fsync(stream.fileno())
    about = {"bytes": temporary.stat().st_size, "sha256": sha256_of(temporary)}
    current = folder / LENGTHS
    if current.is_file() and sha256_of(current) == about["sha256"]:
        temporary.unlink()
        pending.unlink(missing_ok=True)
    else:
        if manifest.files.get(LENGTHS) == about:
            done.append(f"{LENGTHS}: rewritten")
        temporary.replace(pending)
        fsync_path(folder)
    manifest.files[LENGTHS] = about
    manifest.write(folder)
    if pending.is_file():
        pending.replace(current)
        fsync_path(folder)


def _damaged_others(folder: Path, manifest: Manifest) -> list[str]:
    """List damaged files that a repair cannot make again."""
    return [
        f"{folder / name}: missing or damaged, and nothing to repair it from; run `trelm prepare` again"
        for name, about in manifest.files.items()
        if not (folder / name).is_file() or sha256_of(folder / name) != about["sha256"]
    ]
