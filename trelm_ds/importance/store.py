"""The stored scores: `DATASET/importance/`, one float16 array a shard, and what opens them for training.

shard-000000.npy    float16 [M]: cosine of each mention of the shard, in its order; NaN: not scored
shard-000000.json   identity, sha256 of the .npy, counts, mentions of each block
importance.json     written once every shard is there: the same over the whole dataset
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

from trelm_ds.corpus import ENTITIES_FOLDER, GRAPH_FOLDER
from trelm_ds.errors import UserError
from trelm_ds.files import canonical_json, read_json, sha256_of, write_atomically
from trelm_ds.knowledge import (
    EntityFrequencies,
    KnowledgeGraph,
    MentionSelector,
    Selection,
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


@dataclass(frozen=True)
class Identity:
    """What scores depend on; two sets of scores of one identity are equal up to rounding.

    Attributes:
        dataset: fingerprint of the manifest.
        model: sha256 of the encoder's weights (the MLM head plays no part).
        config: sizes of the encoder.
        scope: which mentions were scored: those of long-tail entities with a triple, or all.
        entity_threshold: frequency below which an entity was long-tail.
    """

    dataset: str
    model: str
    config: dict[str, Any]
    scope: Scope
    entity_threshold: float

    def difference(self, other: dict[str, Any]) -> str | None:
        """Name of the first thing in which stored scores differ from this."""
        mine = dataclasses.asdict(self)
        return next((name for name, value in mine.items() if other.get(name) != value), None)


@dataclass(frozen=True)
class ShardScores:
    """What `shard-NNNNNN.json` holds.

    Attributes:
        identity: of the scores.
        sha256: of the .npy beside it.
        counts: mentions, in scope, scored, without context (nothing but special tokens outside the mention).
        block_mentions: mentions of each block, so that a block's scores are found without reading the shard.
        histogram: [[cosine, mentions], ...] ascending, over the scored long-tail mentions with a triple.
    """

    identity: dict[str, Any]
    sha256: str
    counts: dict[str, int]
    block_mentions: list[int]
    histogram: list[list[float]]

    @classmethod
    def load(cls, path: Path) -> ShardScores | None:
        """Reads the file; None where there is none or it is none of ours."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def stem(shard: str) -> str:
    """shard-000000.tar -> shard-000000."""
    return shard.removesuffix(".tar")


def sound(folder: Path, shard: str, found: ShardScores | None) -> bool:
    """Whether a shard's scores are there and as they were written."""
    path = folder / f"{stem(shard)}.npy"
    return found is not None and path.is_file() and sha256_of(path) == found.sha256


def save_shard(folder: Path, shard: str, cosines: np.ndarray, about: dict[str, Any]) -> None:
    """Writes a shard's float16 [M] and then what tells that it is whole; `about`: the other fields of `ShardScores`."""
    buffer = io.BytesIO()
    np.save(buffer, cosines)
    data = buffer.getvalue()
    content = ShardScores(sha256=hashlib.sha256(data).hexdigest(), **about)
    write_atomically(folder / f"{stem(shard)}.npy", data)
    write_atomically(folder / f"{stem(shard)}.json", json.dumps(dataclasses.asdict(content)) + "\n")


def save_summary(folder: Path, manifest: Manifest, identity: Identity) -> bool:
    """Writes importance.json if every shard has sound scores of this identity; its content depends on nothing else."""
    shards = {shard.name: ShardScores.load(folder / f"{stem(shard.name)}.json") for shard in manifest.shards}
    counts: Counter[str] = Counter()
    histogram: Counter[float] = Counter()
    for name, found in shards.items():
        if found is None or identity.difference(found.identity) or not sound(folder, name, found):
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
    """[[value, count], ...] of the occupied bins of `cosine_histogram`."""
    places = np.flatnonzero(histogram)
    return [[float(histogram_values()[place]), int(histogram[place])] for place in places]


def read_blocks(dataset: Path, manifest: Manifest, shard: int) -> Iterator[Block]:
    """The blocks of a shard in order.

    Raises:
        UserError: a missing or damaged shard.
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
                yield Block.from_tar(data, f"{path} at byte {offset}")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; run `trelm verify` on the dataset") from None


def load_frequencies(dataset: Path) -> EntityFrequencies:
    """Corpus frequencies of the dataset's entities, and which of them the graph knows.

    Raises:
        UserError: a file is missing.
    """
    try:
        qids, counts = (np.load(dataset / ENTITIES_FOLDER / f"{name}.npy") for name in ("qids", "counts"))
    except (OSError, ValueError) as error:
        raise UserError(f"{dataset / ENTITIES_FOLDER}: cannot be read ({error}); run `trelm prepare` again") from None
    return EntityFrequencies(qids, counts, KnowledgeGraph.load(dataset / GRAPH_FOLDER).degrees(qids) > 0)


class Scores:
    """The complete scores of a dataset, memory-mapped.

    Args:
        dataset: its folder.
        manifest: of the dataset.

    Raises:
        UserError: the scores are missing, incomplete, damaged, or of another dataset.
    """

    def __init__(self, dataset: Path, manifest: Manifest) -> None:
        folder = dataset / FOLDER
        if not (folder / SUMMARY).is_file():
            raise UserError(f"{folder} holds no complete scores; run `trelm importance {dataset} --model MODEL`")
        self.about: dict[str, Any] = read_json(folder / SUMMARY)
        if self.about.get("dataset") != manifest.fingerprint:
            raise UserError(
                f"{folder}: scores of another dataset; remove it and run `trelm importance {dataset} --model MODEL`"
            )
        self._places: list[tuple[int, int, int]] = []  # shard, first mention, last mention + 1 of each block
        self._arrays = []
        for number, shard in enumerate(manifest.shards):
            path, about = folder / f"{stem(shard.name)}.npy", self.about["shards"][shard.name]
            if not path.is_file() or sha256_of(path) != about["sha256"]:
                raise UserError(f"{path}: missing or damaged; run `trelm importance` again")
            self._arrays.append(np.load(path, mmap_mode="r", allow_pickle=False))
            ends = np.cumsum(about["block_mentions"]).tolist()
            self._places += [(number, end - n, end) for end, n in zip(ends, about["block_mentions"], strict=True)]

    @property
    def digest(self) -> str:
        """Hash of the scores, for a run's identity."""
        return hashlib.sha256(canonical_json(self.about).encode()).hexdigest()

    @property
    def complete_for(self) -> Scope:
        return self.about["scope"]

    def block(self, number: int) -> np.ndarray:
        """float16 [M]: cosines of the mentions of a block, counted through the dataset."""
        shard, first, last = self._places[number]
        return np.asarray(self._arrays[shard][first:last])

    def histogram(self, dataset: Path, manifest: Manifest, selection: Selection) -> np.ndarray:
        """`cosine_histogram` over the scored mentions of long-tail entities with a triple.

        At once for the threshold that was scored with; another one reads every block of the dataset.
        """
        frequencies = load_frequencies(dataset)
        threshold = frequencies.mean if selection.entity_threshold is None else float(selection.entity_threshold)
        if threshold == self.about["entity_threshold"]:
            values, times = np.array(self.about["histogram"]).reshape(-1, 2).T
            return _dense(values.astype(np.float16), times.astype(np.int64))
        candidates = frequencies.has_triple & frequencies.long_tail(selection.entity_threshold)
        total = np.zeros(len(histogram_values()), dtype=np.int64)
        blocks = (block for shard in range(len(manifest.shards)) for block in read_blocks(dataset, manifest, shard))
        described = "finding the bar of importance"
        for number, block in enumerate(track(blocks, described, total=len(self._places))):
            mine = frequencies.of(block.mentions[:, 3], candidates)
            total += cosine_histogram(self.block(number)[mine])
        return total


def _dense(values: np.ndarray, times: np.ndarray) -> np.ndarray:
    histogram = np.zeros(len(histogram_values()), dtype=np.int64)
    for value, count in zip(values, times, strict=True):
        histogram += count * cosine_histogram(value[None])
    return histogram


def open_selector(
    dataset: Path, selection: Selection, scores: Scores | None, manifest: Manifest | None = None
) -> MentionSelector:
    """The selector of a dataset.

    Args:
        dataset: its folder.
        selection: what to choose.
        scores: of the dataset, or None to choose by frequency alone.
        manifest: of the dataset, where it is at hand.

    Raises:
        UserError: the scores do not cover what the selection asks for.
    """
    frequencies = load_frequencies(dataset)
    if scores is None:
        return MentionSelector(selection, frequencies, None)
    scored = scores.about["entity_threshold"]
    wanted = frequencies.mean if selection.entity_threshold is None else selection.entity_threshold
    again = f"remove {dataset / FOLDER} and run `trelm importance {dataset} --model MODEL"
    if scores.complete_for == "long_tail":
        if selection.strategy in ("high_frequency", "all"):
            raise UserError(f"strategy: {selection.strategy} needs scores of every mention; {again} --scope all`")
        if wanted > scored:
            raise UserError(
                f"entity_threshold: {wanted:g}, but mentions were scored below {scored:g} only; "
                f"{again} --scope all`, or give that --entity-threshold"
            )
    histogram = scores.histogram(dataset, manifest or Manifest.load(dataset), selection)
    return MentionSelector(selection, frequencies, cosine_bar(histogram, selection.quantile))
