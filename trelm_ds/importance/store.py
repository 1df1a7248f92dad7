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
    Strategy,
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
        self.dataset, self._manifest = dataset, manifest
        folder = dataset / FOLDER
        anew = f"run `trelm importance {dataset} --model MODEL`"
        if not (folder / SUMMARY).is_file():
            raise UserError(f"{folder} holds no complete scores; {anew}")
        self.about: dict[str, Any] = read_json(folder / SUMMARY)
        try:
            shards = [(name, about["sha256"], about["block_mentions"]) for name, about in self.about["shards"].items()]
            self.scope: Scope = self.about["scope"]
            self.entity_threshold: float = self.about["entity_threshold"]
            same = self.about["dataset"] == manifest.fingerprint
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{folder / SUMMARY}: damaged ({error}); remove it and {anew}") from None
        if not same:
            raise UserError(f"{folder}: scores of another dataset; remove it and {anew}")
        self._places: list[tuple[int, int, int]] = []  # shard, first mention, last mention + 1 of each block
        self._arrays = []
        for number, (name, sha256, block_mentions) in enumerate(shards):
            path = folder / f"{stem(name)}.npy"
            if not path.is_file() or sha256_of(path) != sha256:
                raise UserError(f"{path}: missing or damaged; run `trelm importance` again")
            self._arrays.append(np.load(path, mmap_mode="r", allow_pickle=False))
            ends = np.cumsum(block_mentions).tolist()
            self._places += [(number, end - n, end) for end, n in zip(ends, block_mentions, strict=True)]

    @property
    def digest(self) -> str:
        """Hash of the scores, for a run's identity."""
        return hashlib.sha256(canonical_json(self.about).encode()).hexdigest()

    def block(self, number: int) -> np.ndarray:
        """float16 [M]: cosines of the mentions of a block, counted through the dataset."""
        shard, first, last = self._places[number]
        return np.asarray(self._arrays[shard][first:last])

    def at(self, blocks: np.ndarray, places: np.ndarray) -> np.ndarray:
        """float16 [M]: cosines of mentions by block, int [M], and by place among their block's mentions, int [M]."""
        cosines = np.empty(len(blocks), dtype=np.float16)
        for number in np.unique(blocks).tolist():
            mine = np.flatnonzero(blocks == number)
            cosines[mine] = self.block(number)[places[mine]]
        return cosines

    def bar(self, selection: Selection, frequencies: EntityFrequencies) -> float:
        """The largest cosine of an important mention: `selection.quantile` of the scored long-tail ones with a triple.

        At once for the threshold that was scored with; another one reads every block of the dataset.

        Raises:
            UserError: not every long-tail mention was scored.
        """
        threshold = frequencies.mean if selection.entity_threshold is None else float(selection.entity_threshold)
        if self.scope == "long_tail" and threshold > self.entity_threshold:
            raise UserError(
                f"entity_threshold: {threshold:g}, but mentions were scored below {self.entity_threshold:g} only; "
                f"{self._anew} --scope all`, or give that --entity-threshold"
            )
        if threshold == self.entity_threshold:
            values, times = np.array(self.about["histogram"]).reshape(-1, 2).T
            histogram = cosine_histogram(values.astype(np.float16), times)
        else:
            rare = frequencies.has_triple & frequencies.long_tail(selection.entity_threshold)
            histogram = self._histogram(frequencies, rare)
        return cosine_bar(histogram, selection.quantile)

    def check_covers(self, strategy: Strategy) -> None:
        """Raises UserError if mentions that the strategy may choose were not scored."""
        if self.scope == "long_tail" and strategy in ("high_frequency", "all"):
            raise UserError(
                f"selection.strategy: {strategy} needs scores of every mention; {self._anew} --scope all`, or "
                "set selection.importance none"
            )

    @property
    def _anew(self) -> str:
        return f"remove {self.dataset / FOLDER} and run `trelm importance {self.dataset} --model MODEL"

    def _histogram(self, frequencies: EntityFrequencies, candidates: np.ndarray) -> np.ndarray:
        """`cosine_histogram` over the mentions of some entities, bool [E]."""
        total = np.zeros(len(histogram_values()), dtype=np.int64)
        shards = range(len(self._manifest.shards))
        blocks = (block for shard in shards for block in read_blocks(self.dataset, self._manifest, shard))
        for number, block in enumerate(track(blocks, "finding the bar of importance", total=len(self._places))):
            total += cosine_histogram(self.block(number)[frequencies.of(block.mentions[:, 3], candidates)])
        return total


def open_scores(dataset: Path, manifest: Manifest, importance: Literal["auto", "required", "none"]) -> Scores | None:
    """The scores that `selection.importance` asks for; None to go by frequency alone.

    Raises:
        UserError: required but not there, or there but unfit.
    """
    if importance == "none" or (importance == "auto" and not (dataset / FOLDER / SUMMARY).is_file()):
        return None
    try:
        return Scores(dataset, manifest)
    except UserError as error:
        raise UserError(f"selection.importance: {importance}, but {error}") from None


def open_selector(dataset: Path, selection: Selection, scores: Scores | None) -> MentionSelector:
    """The selector of a dataset.

    Args:
        dataset: its folder.
        selection: what to choose.
        scores: of the dataset, or None to choose by frequency alone.

    Raises:
        UserError: the scores do not cover what the selection asks for.
    """
    frequencies = load_frequencies(dataset)
    if scores is None:
        return MentionSelector(selection, frequencies, None)
    scores.check_covers(selection.strategy)
    return MentionSelector(selection, frequencies, scores.bar(selection, frequencies))
