"""Verification of a dataset against its manifest."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from trelm_ds.errors import UnreadableError, UserError
from trelm_ds.files import sha256_of
from trelm_ds.progress import track
from trelm_ds.shards.format import Block
from trelm_ds.shards.manifest import Manifest, ShardInfo


def verify(folder: Path) -> tuple[Manifest, list[str]]:
    """Verify every byte of every file.

    Returns:
        the manifest, and one line for each problem, naming the file; none for an intact dataset.

    Raises:
        UserError: `folder` is not a dataset, its manifest is damaged, or a file may not be read.
    """
    manifest = Manifest.load(folder)
    found: list[str] = []
    for shard in track(manifest.shards, "verifying shards", total=len(manifest.shards)):
        found += _readable(folder / shard.name, partial(_problems, shard=shard, vocab_size=manifest.vocab_size))
    for name, about in manifest.files.items():
        found += _readable(folder / name, partial(_other_content, **about))
    known = {shard.name for shard in manifest.shards}
    found += [f"{path}: not in the manifest" for path in sorted(folder.glob("*.tar")) if path.name not in known]
    return manifest, found


def check_files(folder: Path, manifest: Manifest, names: tuple[str, ...]) -> None:
    """Verify the files and folders in `names`, which must not be shards, against the manifest.

    Raises:
        UserError: a file is missing or damaged.
    """
    for name, about in manifest.files.items():
        if name.split("/")[0] in names and (found := _readable(folder / name, partial(_other_content, **about))):
            raise UserError(f"{found[0]}; restore it, or run `trelm prepare` again")


def _readable(path: Path, check: Callable[[Path], list[str]]) -> list[str]:
    """Return what `check` finds, or that the disk cannot read the file.

    Raises:
        UserError: it cannot be read now, which says nothing about its content.
    """
    try:
        return check(path)
    except OSError as error:
        problem = UnreadableError(path, error)
        if not problem.lost:
            raise problem from None
        return [str(problem)]


def _other_content(path: Path, bytes: int, sha256: str) -> list[str]:
    """Compare a file with its size and hash in the manifest."""
    if not path.is_file():
        return [f"{path}: missing"]
    if path.stat().st_size != bytes:
        return [f"{path}: {path.stat().st_size} bytes, the manifest says {bytes}"]
    if sha256_of(path) != sha256:
        return [f"{path}: its content does not match its sha256 in the manifest"]
    return []


def _problems(path: Path, shard: ShardInfo, vocab_size: int) -> list[str]:
    """Compare a shard and each of its blocks with the manifest."""
    if found := _other_content(path, shard.bytes, shard.sha256):
        return found
    sequences = tokens = mentions = 0
    with path.open("rb") as stream:
        for offset, length, in_block, _ in shard.blocks:
            stream.seek(offset)
            try:
                block = Block.from_tar(stream.read(length), f"{path} at byte {offset}", vocab_size)
            except UserError as error:
                return [str(error)]
            if len(block.lengths) != in_block:
                return [f"{path} at byte {offset}: {len(block.lengths)} sequences, the manifest says {in_block}"]
            sequences, tokens = sequences + len(block.lengths), tokens + len(block.tokens)
            mentions += len(block.mentions)
    if (sequences, tokens, mentions) != (shard.sequences, shard.tokens, shard.mentions):
        return [f"{path}: {sequences} sequences, {tokens} tokens, {mentions} mentions; the manifest says otherwise"]
    return []
