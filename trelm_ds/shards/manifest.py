"""The dataset's manifest: its content, the location of every block, and a fingerprint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trelm_ds.errors import UserError
from trelm_ds.files import canonical_json, read_json, sha256_of, write_atomically

SCHEMA = 3
MANIFEST = "manifest.json"
LENGTHS = "lengths.npy"
DROPPED = "sequences dropped by repair"
HELD_OUT_FACTS = "held_out_facts.tsv"  # triples that were taken out of the graph, if any
HELD_OUT_TEXT = "held_out_text"  # text that is not trained on, if any: a folder with shards and a manifest of its own
CARD = "README.md"  # people may edit it, so it is not verified
LENGTHS_NEXT = "lengths.npy.next"  # written by a repair, until its last rename


@dataclass
class ShardInfo:
    """One tar shard; `blocks` has [offset in bytes, length in bytes, sequences, crc32] of each block."""

    name: str
    bytes: int
    sha256: str
    sequences: int
    tokens: int
    mentions: int
    blocks: list[list[int]]


@dataclass
class Manifest:
    """Everything a reader needs to know about a dataset.

    Attributes:
        tokenizer: fields of `trelm_ds.corpus.tokenizer.TokenizerInfo`.
        max_length: upper limit of a sequence's length in tokens.
        request: the request to `trelm prepare` (sources with hashes, options): equal requests give equal datasets.
        counts: the funnel, from documents read to sequences written.
        shards: shards in reading order.
        files: bytes and sha256 of every other file except the manifest and the data card, by path relative to the
            dataset's folder.
        schema: version of this layout.
    """

    tokenizer: dict[str, Any]
    max_length: int
    request: dict[str, Any]
    counts: dict[str, int]
    shards: list[ShardInfo] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def vocab_size(self) -> int:
        """Number of tokens of the vocabulary."""
        return int(self.tokenizer["vocab_size"])

    @property
    def n_sequences(self) -> int:
        """Number of sequences in all shards."""
        return sum(shard.sequences for shard in self.shards)

    @property
    def n_tokens(self) -> int:
        """Number of tokens in all shards."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def n_mentions(self) -> int:
        """Number of mentions in all shards."""
        return sum(shard.mentions for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Hash of everything a reader relies on; equal for equal data, whatever the folder's name.

        The tokenizer enters by its vocabulary and the data card not at all, because their files depend on the versions
        of the libraries that write them.
        """
        shards = [dataclasses.asdict(shard) for shard in self.shards]
        read = (HELD_OUT_FACTS, f"{HELD_OUT_TEXT}/{MANIFEST}")
        files = {name: about for name, about in self.files.items() if name.endswith(".npy") or name in read}
        content = [self.schema, self.tokenizer, self.max_length, shards, files]
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Set `files` from the files in the folder, and write `folder/manifest.json` atomically."""
        shards = {shard.name for shard in self.shards}
        beside = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        self.files = {
            name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
            for name in beside
            if name not in shards and name not in (MANIFEST, CARD)
        }
        self.write(folder)

    def write(self, folder: Path) -> None:
        """Write `folder/manifest.json` atomically, with `files` as it is."""
        totals = {"sequences": self.n_sequences, "tokens": self.n_tokens, "mentions": self.n_mentions}
        content = dataclasses.asdict(self) | {"totals": totals, "fingerprint": self.fingerprint}
        write_atomically(folder / MANIFEST, json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read and check `folder/manifest.json`.

        Raises:
            UserError: there is no dataset, it has another schema version, or the manifest was changed by hand.
        """
        path = folder / MANIFEST
        if not path.is_file():
            what = f"has no {MANIFEST}" if folder.is_dir() else "does not exist"
            raise UserError(f"{folder} is no dataset: it {what}; make one with `trelm prepare`")
        content = read_json(path)
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            found = content.get("schema") if isinstance(content, dict) else None
            raise UserError(f"{path}: schema version {found}, this program reads {SCHEMA}; run `trelm prepare` again")
        try:
            shards = [ShardInfo(**shard) for shard in content["shards"]]
            manifest = cls(**{item.name: content[item.name] for item in dataclasses.fields(cls)} | {"shards": shards})
            fingerprint = content["fingerprint"]
            if not all(re.fullmatch(r"shard-\d{6}\.tar", shard.name) for shard in shards):
                raise ValueError("a shard's name")
            if not isinstance(manifest.tokenizer, dict) or manifest.vocab_size < 1:
                raise ValueError("the tokenizer")
            if not isinstance(manifest.files, dict) or not isinstance(manifest.counts, dict):
                raise ValueError("files and counts must be objects")
            if any(Path(name).is_absolute() or ".." in Path(name).parts for name in manifest.files):
                raise ValueError("a file's name")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: damaged manifest ({error}); run `trelm prepare` again") from None
        if manifest.fingerprint != fingerprint:
            raise UserError(f"{path}: its fingerprint does not match its content; run `trelm prepare` again")
        return manifest
