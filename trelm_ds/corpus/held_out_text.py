"""Text that is held out: documents that a model is scored on and never trained on."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from trelm_ds.corpus.documents import Document
from trelm_ds.corpus.options import PrepareOptions
from trelm_ds.corpus.tokenizer import TokenizerInfo
from trelm_ds.errors import UserError
from trelm_ds.keyed_random import Stream, keyed_uniform
from trelm_ds.shards import Block, Manifest, ShardWriter


def is_held_out(text: str, share: float) -> bool:
    """Whether a document is held out: by its text alone, so whatever else the corpus holds.

    A repeated document is held out everywhere or nowhere, and a larger share contains a smaller one.
    """
    key = int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
    return bool(keyed_uniform(Stream.HELD_OUT_TEXT, key) < share)


def without_held_out(
    documents: Iterable[Document], share: float | None, held_out: list[Document] | None = None
) -> Iterator[Document]:
    """Yield the documents to train on, and append the others to `held_out`; with share None there are none."""
    for document in documents:
        if share is None or not is_held_out(document.text, share):
            yield document
        elif held_out is not None:
            held_out.append(document)


def write_held_out(blocks: Iterable[Block], folder: Path, options: PrepareOptions, info: TokenizerInfo) -> None:
    """Write the sequences held out into a folder that is read as a dataset's shards are.

    Raises:
        UserError: there are none.
    """
    folder.mkdir()
    writer = ShardWriter(folder, info.vocab_size, options.shard_mb * 1_000_000)
    for block in blocks:
        writer.extend(block)
    if not (shards := writer.close()):
        raise UserError(f"--held-out: {options.held_out:g} holds out no document of this corpus; give a larger share")
    Manifest(dataclasses.asdict(info), options.max_length, {}, {}, shards).save(folder)
