"""Stored importance scores, one float16 array per shard in `DATASET/importance/`, and how training opens them.

shard-000000.npy    float16 [M]: cosine of each mention of the shard, in order; NaN: not scored
shard-000000.json   identity, sha256 of the .npy, counts, mentions per block
importance.json     the same for the whole dataset, written once every shard is scored
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trelm_ds.config import SelectionConfig, Strategy
from trelm_ds.corpus import ENTITIES_FOLDER, GRAPH_FOLDER
from trelm_ds.errors import UserError
from trelm_ds.files import canonical_json, load_array, read_json, sha256_of, write_atomically
from trelm_ds.knowledge import (
    EntityFrequencies,
    KnowledgeGraph,
    MentionSelector,
    cosine_bar,
    cosine_histogram,
    histogram_values,
)
from trelm_ds.progress import track
from trelm_ds.shards import Block, Manifest

FOLDER = "importance"
SUMMARY = "importance.json"
DTYPE = "float16"
Scope = Literal["long_tail", "all"]
FREQUENCY_FILES = (ENTITIES_FOLDER, GRAPH_FOLDER)  # what `load_frequencies` reads of a dataset


@dataclass(frozen=True)
class Identity:
    """Everything scores depend on; scores of equal identity are equal up to rounding.

    Attributes:
        dataset: fingerprint of the manifest.
        model: sha256 of the encoder's weights, without the MLM head.
        config: sizes of the encoder.
        scope: which mentions were scored: those of long-tail entities with a triple, or all.
        entity_threshold: mentions in the corpus below which an entity is long-tail.
    """

    dataset: str
    model: str
    config: dict[str, Any]
    scope: Scope
    entity_threshold: float

    def difference(self, other: dict[str, Any]) -> str | None:
        """Return the first field in which the identity of stored scores differs from this one."""
        mine = dataclasses.asdict(self)
        return next((name for name, value in mine.items() if other.get(name) != value), None)


@dataclass(frozen=True)
class ShardScores:
    """Content of `shard-NNNNNN.json`.

    Attributes:
        identity: fields of `Identity`.
        sha256: hash of the .npy beside it.
        counts: mentions, in scope, scored, without context (only special tokens outside the mention).
        block_mentions: mentions per block, to locate a block's scores without reading the shard.
        histogram: [[cosine, mentions], ...] ascending, over the scored long-tail mentions with a triple.
    """

    identity: dict[str, Any]
    sha256: str
    counts: dict[str, int]
    block_mentions: list[int]
    histogram: list[list[float]]

    @classmethod
    def load(cls, path: Path) -> ShardScores | None:
        """Read the file; None if it is missing or malformed."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def stem(shard: str) -> str:
    """Strip the suffix: shard-000000.tar becomes shard-000000."""
    return shard.removesuffix(".tar")


def is_intact(folder: Path, shard: str, found: ShardScores | None) -> bool:
    """Tell whether a shard's scores exist and match their recorded hash."""
    path = folder / f"{stem(shard)}.npy"
    return found is not None and path.is_file() and sha256_of(path) == found.sha256


def save_shard(folder: Path, shard: str, cosines: np.ndarray, about: dict[str, Any]) -> None:
    """Write a shard's scores, float16 [M], then their record; `about` has the other fields of `ShardScores`."""
    buffer = io.BytesIO()
    np.save(buffer, cosines)
    data = buffer.getvalue()
    content = ShardScores(sha256=hashlib.sha256(data).hexdigest(), **about)
    write_atomically(folder / f"{stem(shard)}.npy", data)
    write_atomically(folder / f"{stem(shard)}.json", json.dumps(dataclasses.asdict(content)) + "\n")


def save_summary(folder: Path, manifest: Manifest, identity: Identity) -> bool:
    """Write importance.json if every shard has intact scores of this identity; return whether it was written.

    Its content depends on the shards' scores only, not on how they were divided into parts.
    """
    shards = {shard.name: ShardScores.load(folder / f"{stem(shard.name)}.json") for shard in manifest.shards}
    counts: Counter[str] = Counter()
    histogram: Counter[float] = Counter()
    for name, found in shards.items():
        if found is None or identity.difference(found.identity) or not is_intact(folder, name, found):
            return False
        counts.update(found.counts)
        histogram.update({cosine: int(times) for cosine, times in found.histogram})
    content = {
        **dataclasses.asdict(identity),
        "dtype": DTYPE,
        "counts": dict(counts),
        "histogram": [[cosine, histogram[cosine]] for cosine in sorted(histogram)],
        "shards": {
            name: {"sha256": found.sha256, "block_mentions": found.block_mentions}
            for name, found in shards.items()
            if found is not None
        },
    }
    write_atomically(folder / SUMMARY, json.dumps(content) + "\n")
    return True


def sparse(histogram: np.ndarray) -> list[list[float]]:
    """List the non-empty bins of a `cosine_histogram` as [[value, count], ...]."""
    places = np.flatnonzero(histogram)
    return [[float(histogram_values()[place]), int(histogram[place])] for place in places]


def read_blocks(dataset: Path, manifest: Manifest, shard: int) -> Iterator[Block]:
    """Yield the blocks of a shard in order.

    Raises:
        UserError: the shard is missing or damaged.
    """
    about = manifest.shards[shard]
    path = dataset / about.name
    try:
        with path.open("rb") as stream:
            for offset, length, _, crc in about.blocks:
                stream.seek(offset)
                data = stream.read(length)
                if zlib.crc32(data) != crc:
                    raise UserError(f"{path} at byte {offset}: damaged block; run `trelm verify` on the dataset")
                yield Block.from_tar(data, f"{path} at byte {offset}", manifest.vocab_size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; run `trelm verify` on the dataset") from None


def load_frequencies(dataset: Path) -> EntityFrequencies:
    """Load the corpus frequencies of the dataset's entities, and which of them have a triple in the graph.

    Raises:
        UserError: a file is missing or damaged.
    """
    qids, counts = (np.asarray(load_array(dataset / ENTITIES_FOLDER / f"{name}.npy")) for name in ("qids", "counts"))
    return EntityFrequencies(qids, counts, KnowledgeGraph.load(dataset / GRAPH_FOLDER).degrees(qids) > 0)


class ImportanceScores:
    """The complete scores of a dataset, memory-mapped.

    Raises:
        UserError: the scores are missing, incomplete, damaged, or of another dataset.
    """

    def __init__(self, dataset: Path, manifest: Manifest) -> None:
        self.dataset, self._manifest = dataset, manifest
        folder = dataset / FOLDER
        advice = f"run `trelm importance {dataset} --model MODEL`"
        if not (folder / SUMMARY).is_file():
            raise UserError(f"{folder} holds no complete scores; {advice}")
        self.about: dict[str, Any] = read_json(folder / SUMMARY)
        try:
            shards = [(name, about["sha256"], about["block_mentions"]) for name, about in self.about["shards"].items()]
            self.scope: Scope = self.about["scope"]
            self.entity_threshold: float = self.about["entity_threshold"]
            same = self.about["dataset"] == manifest.fingerprint
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{folder / SUMMARY}: damaged ({error}); remove it and {advice}") from None
        if not same:
            raise UserError(f"{folder}: scores of another dataset; remove it and {advice}")
        self._places: list[tuple[int, int, int]] = []  # shard, first mention, last mention + 1 of each block
        self._arrays = []
        for number, (name, sha256, block_mentions) in enumerate(shards):
            path = folder / f"{stem(name)}.npy"
            if not path.is_file() or sha256_of(path) != sha256:
                raise UserError(f"{path}: missing or damaged; run `trelm importance` again")
            self._arrays.append(load_array(path))
            ends = np.cumsum(block_mentions).tolist()
            self._places += [(number, end - n, end) for end, n in zip(ends, block_mentions, strict=True)]

    @property
    def digest(self) -> str:
        """Hash of the scores, part of a run's identity."""
        return hashlib.sha256(canonical_json(self.about).encode()).hexdigest()

    def block(self, number: int) -> np.ndarray:
        """Return the cosines of a block's mentions, float16 [M]; blocks are numbered through the dataset."""
        shard, first, last = self._places[number]
        return np.asarray(self._arrays[shard][first:last])

    def at(self, blocks: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Look up cosines, float16 [M], by block, int [M], and index among the block's mentions, int [M]."""
        cosines = np.empty(len(blocks), dtype=np.float16)
        for number in np.unique(blocks).tolist():
            mine = np.flatnonzero(blocks == number)
            cosines[mine] = self.block(number)[places[mine]]
        return cosines

    def bar(self, selection: SelectionConfig, frequencies: EntityFrequencies) -> float:
        """Find the largest cosine of an important mention: `quantile` of the scored long-tail mentions with a triple.

        Immediate for the entity threshold used in scoring; for another one, every block of the dataset is read.

        Raises:
            UserError: not every long-tail mention was scored.
        """
        threshold = frequencies.mean if selection.entity_threshold is None else float(selection.entity_threshold)
        if self.scope == "long_tail" and threshold > self.entity_threshold:
            raise UserError(
                f"entity_threshold: {threshold:g}, but mentions were scored below {self.entity_threshold:g} only; "
                f"{self._rescore} --scope all`, or give that --entity-threshold"
            )
        if threshold == self.entity_threshold:
            values, times = np.array(self.about["histogram"]).reshape(-1, 2).T
            histogram = cosine_histogram(values.astype(np.float16), times)
        else:
            rare = frequencies.has_triple & frequencies.long_tail(selection.entity_threshold)
            histogram = self._histogram(frequencies, rare)
        return cosine_bar(histogram, selection.quantile)

    def check_covers(self, strategy: Strategy) -> None:
        """Raise UserError if the strategy may select mentions that were not scored."""
        if self.scope == "long_tail" and strategy in ("high_frequency", "all"):
            raise UserError(
                f"selection.strategy: {strategy} needs scores of every mention; {self._rescore} --scope all`, or "
                "set selection.importance none"
            )

    @property
    def _rescore(self) -> str:
        """Advice to score again, as the beginning of a command."""
        return f"remove {self.dataset / FOLDER} and run `trelm importance {self.dataset} --model MODEL"

    def _histogram(self, frequencies: EntityFrequencies, candidates: np.ndarray) -> np.ndarray:
        """Compute the `cosine_histogram` of the mentions of the marked entities, bool [E]."""
        total = np.zeros(len(histogram_values()), dtype=np.int64)
        shards = range(len(self._manifest.shards))
        blocks = (block for shard in shards for block in read_blocks(self.dataset, self._manifest, shard))
        for number, block in enumerate(track(blocks, "finding the bar of importance", total=len(self._places))):
            total += cosine_histogram(self.block(number)[frequencies.lookup(block.mentions[:, 3], candidates)])
        return total


def open_scores(
    dataset: Path, manifest: Manifest, importance: Literal["auto", "required", "none"]
) -> ImportanceScores | None:
    """Open the scores that `selection.importance` asks for; None to select by frequency alone.

    Raises:
        UserError: the scores are required but missing, or present but unusable.
    """
    if importance == "none" or (importance == "auto" and not (dataset / FOLDER / SUMMARY).is_file()):
        return None
    try:
        return ImportanceScores(dataset, manifest)
    except UserError as error:
        raise UserError(f"selection.importance: {importance}, but {error}") from None


def open_selector(dataset: Path, selection: SelectionConfig, scores: ImportanceScores | None) -> MentionSelector:
    """Open a dataset's mention selector; without scores it selects by frequency alone.

    Raises:
        UserError: the scores do not cover every mention the strategy may select.
    """
    frequencies = load_frequencies(dataset)
    if scores is None:
        return MentionSelector(selection, frequencies, None)
    scores.check_covers(selection.strategy)
    return MentionSelector(selection, frequencies, scores.bar(selection, frequencies))
